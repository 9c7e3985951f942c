"""`edgetl pretrain`: a backbone of one's own from scratch, as a file that `--weights` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli import finetune as options
from edgetl.cli.console import JsonFlag, OutOption, session, shell, tune_for_training
from edgetl.spec import Fit

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "Pretrain:    edgetl pretrain scans --to scans.safetensors\n\n"
    "Pass it on:  edgetl finetune few --to models/mine --weights scans.safetensors"
)
DEFAULT = "smallnet"

ToOption = Annotated[Path, typer.Option("--to", help="The .safetensors or .pth file to make.", metavar="FILE")]
BackboneOption = Annotated[
    str, typer.Option(help="smallnet, plaincnn (two convolutions, two linear layers) or any of torchvision.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")]


def pretrain(
    ctx: typer.Context,
    data: options.DataArgument,
    to: ToOption,
    backbone: BackboneOption = DEFAULT,
    backbone_args: options.BackboneArgsOption = "",
    epochs: options.EpochsOption = None,
    lr: options.LrOption = None,
    batch_size: options.BatchSizeOption = None,
    image_size: options.ImageSizeOption = None,
    fit: options.FitOption = Fit.CROP,
    val_fraction: options.ValFractionOption = 0.15,
    test_fraction: options.TestFractionOption = 0.15,
    group_by: options.GroupByOption = "",
    strict: options.StrictOption = False,
    near_duplicates: options.NearDuplicatesOption = "warn",
    data_root: options.DataRootOption = None,
    device: options.DeviceOption = "auto",
    amp: options.AmpOption = "auto",
    seed: options.SeedOption = 0,
    skip_corrupt: options.SkipCorruptOption = False,
    resume: options.ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Train a backbone from random weights on labelled images, to be fine-tuned later with --weights FILE.

    The file knows its backbone, arguments, labels and preprocessing; `finetune --weights FILE` needs no more.
    """
    given = dict(locals())
    with session(ctx, as_json, out) as run:
        from edgetl.images import ReadOptions
        from edgetl.transfer import FinetuneOptions

        wanted = FinetuneOptions(**options.named(FinetuneOptions, given), weights="none", strategy="scratch")
        reading = ReadOptions(**options.named(ReadOptions, given))
        tune_for_training()
        from edgetl.images import read_data
        from edgetl.transfer.pretrain import pretrain as stage
        from edgetl.transfer.processes import joined

        try:
            with joined(wanted.device) as group:
                found = group.first(
                    lambda: read_data(options.folder_of(data, data_root, run.monitor), reading, run.monitor)
                )
                result = stage(found, to, wanted, run.monitor, group=group)
        except KeyboardInterrupt:
            run.monitor.say("what was done so far is kept: the same command with --resume continues it")
            raise
        run.done(result, show=lambda console: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    for split in ("val", "test"):
        found = result[split]
        if found:
            low, high = found["accuracy_ci"]
            line = f"{split}: {found['accuracy']:.3f} of {found['n']} images right (95 % {low:.3f} - {high:.3f})"
            console.print(line, highlight=False)
    megabytes, seconds = result["bytes"] / 1e6, result["seconds"]
    took = "made before" if seconds is None else f"{seconds:.0f} s"  # --resume of a run that had ended
    console.print(
        f"{result['backbone']}, {len(result['labels'])} classes: {result['file']}  ({megabytes:.1f} MB, {took}). "
        f"Next: edgetl finetune DATA --to BUNDLE --weights {shell(result['file'])}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
