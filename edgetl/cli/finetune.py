"""`edgetl finetune`: a folder of labelled photos in, a bundle with a checkpoint out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, session, shell, tune_for_training
from edgetl.cli.evaluation import show as show_evaluation
from edgetl.spec import Fit

if TYPE_CHECKING:
    from rich.console import Console

    from edgetl.images import ReadOptions
    from edgetl.monitor import Monitor
    from edgetl.transfer import FinetuneOptions

EXAMPLES = (
    "Photos:      edgetl finetune photos --to models/flowers --image-size 160\n\n"
    "A data set:  edgetl finetune torchvision:Flowers102 --to models/f102\n\n"
    "Elsewhere:   edgetl finetune photos --to m --unlabelled field --adapt auto\n\n"
    "Few labels:  edgetl finetune photos --to m --label-budget 5,10 --folds 5\n\n"
    "Smaller:     edgetl finetune photos --to m --teacher models/large"
)


DataArgument = Annotated[str, typer.Argument(help="Image folder, CSV, or torchvision:NAME.", metavar="DATA")]
ToOption = Annotated[Path, typer.Option("--to", help="The bundle folder to make.", metavar="BUNDLE")]
BackboneOption = Annotated[
    str | None, typer.Option(help="Any torchvision classification model (default resnet18).", metavar="NAME")
]
BackboneArgsOption = Annotated[str, typer.Option(help="Builder arguments: width_mult=0.5,...", metavar="K=V,...")]
WeightsOption = Annotated[
    str, typer.Option(help="auto (torchvision's, downloaded), none, embedded, or a state dict FILE.", metavar="W")
]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        help="lp-ft (default), linear-probe, features, gradual, full, scratch (default with --weights none) or auto."
    ),
]
KeepOption = Annotated[str, typer.Option(help="Hold the training to the pretrained network: none, l2sp, delta, bss.")]
TeacherOption = Annotated[
    Path | None, typer.Option(help="A bundle of the same classes that teaches this backbone.", metavar="BUNDLE")
]
AdaptOption = Annotated[
    str,
    typer.Option(
        help="To the domain of --unlabelled: none, standardise, mmd, jmmd, coral, dann, cdan, mcc, or auto.",
        metavar="METHOD",
    ),
]
UnlabelledOption = Annotated[
    Path | None, typer.Option(help="Images without labels, for --adapt and --teacher.", metavar="DIR")
]
AdaptClassesOption = Annotated[
    str, typer.Option(help="source: learn DATA's classes though the folders in --unlabelled differ.", metavar="C")
]
EpochsOption = Annotated[int | None, typer.Option(help="At most this many (default: by the size of the set).")]
HeadEpochsOption = Annotated[int, typer.Option(help="The first N epochs train the head alone.")]
LrOption = Annotated[float | None, typer.Option(help="Peak learning rate of the head; the body's follows.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Images a step (default 16 to 64, by set size).")]
ImageSizeOption = Annotated[
    int | None, typer.Option(help="The crop; the resize keeps the weights' own ratio.", metavar="PX")
]
FitOption = Annotated[Fit, typer.Option(help="How an image becomes a square.")]
ValFractionOption = Annotated[float, typer.Option(help="Share of the images for val, where DATA has no val.")]
TestFractionOption = Annotated[float, typer.Option(help="Share for test, where DATA has no splits.")]
GroupByOption = Annotated[str, typer.Option(help="Images whose path matches alike stay in one split.", metavar="REGEX")]
NearDuplicatesOption = Annotated[
    str, typer.Option(help="Pictures alike in two splits: warn, together (in one split) or ignore.", metavar="HOW")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Fail on one image with two labels.")]
DataRootOption = Annotated[Path | None, typer.Option(help="Where torchvision:NAME is downloaded to.", metavar="DIR")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AmpOption = Annotated[str, typer.Option(help="Mixed precision: auto (by the processor), off, bf16, fp16.")]
SeedOption = Annotated[int, typer.Option(help="Of splits, initialisation, order and augmentation.")]
FoldsOption = Annotated[
    int | None, typer.Option(help="Also cross-validate the whole procedure with K folds.", metavar="K")
]
LabelBudgetOption = Annotated[
    str, typer.Option(help="Also measure the accuracy with so many labels a class: 5,10,25,50.", metavar="N,...")
]
AbstainOption = Annotated[
    float | None, typer.Option(help="`classify` abstains where fewer answers would be right.", metavar="SHARE")
]
SkipCorruptOption = Annotated[bool, typer.Option("--skip-corrupt", help="Leave corrupt images out, named.")]
NoGoldenPhotosOption = Annotated[bool, typer.Option("--no-golden-photos", help="Keep the golden cases as arrays only.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue a killed run of the same options.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="A new generation in a bundle that is there.")]


def finetune(
    ctx: typer.Context,
    data: DataArgument,
    to: ToOption,
    backbone: BackboneOption = None,
    backbone_args: BackboneArgsOption = "",
    weights: WeightsOption = "auto",
    strategy: StrategyOption = None,
    keep: KeepOption = "none",
    teacher: TeacherOption = None,
    adapt: AdaptOption = "none",
    unlabelled: UnlabelledOption = None,
    adapt_classes: AdaptClassesOption = "same",
    epochs: EpochsOption = None,
    head_epochs: HeadEpochsOption = 0,
    lr: LrOption = None,
    batch_size: BatchSizeOption = None,
    image_size: ImageSizeOption = None,
    fit: FitOption = Fit.CROP,
    val_fraction: ValFractionOption = 0.15,
    test_fraction: TestFractionOption = 0.15,
    group_by: GroupByOption = "",
    strict: StrictOption = False,
    near_duplicates: NearDuplicatesOption = "warn",
    data_root: DataRootOption = None,
    device: DeviceOption = "auto",
    amp: AmpOption = "auto",
    seed: SeedOption = 0,
    folds: FoldsOption = None,
    label_budget: LabelBudgetOption = "",
    abstain_precision: AbstainOption = None,
    skip_corrupt: SkipCorruptOption = False,
    no_golden_photos: NoGoldenPhotosOption = False,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Fine-tune a pretrained backbone on your images and make a bundle.

    A linear probe on cached features comes first; then everything is fine-tuned from its solution, and the
    better of the two on val is kept. The test split is looked at once, at the end.
    """
    given = dict(locals())
    with session(ctx, as_json, out) as run:
        from edgetl.images import ReadOptions
        from edgetl.transfer import FinetuneOptions
        from edgetl.transfer.options import budgets_of

        given["label_budget"] = budgets_of(label_budget)
        options = FinetuneOptions(**named(FinetuneOptions, given), golden_photos=not no_golden_photos)
        reading = ReadOptions(**named(ReadOptions, given))
        result = _run(data, data_root, reading, to, options, run.monitor)
        run.done(result, show=lambda console: _show(console, result))


def named(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """The command's options that a dataclass of options has by the same name."""
    return {field.name: given[field.name] for field in fields(kind) if field.name in given}


def _run(
    data: str, data_root: Path | None, reading: ReadOptions, to: Path, options: FinetuneOptions, monitor: Monitor
) -> dict[str, Any]:
    tune_for_training()
    from edgetl.images import read_data
    from edgetl.transfer import finetune
    from edgetl.transfer.processes import joined

    try:
        with joined(options.device) as group:
            found = group.first(lambda: read_data(folder_of(data, data_root, monitor), reading, monitor))
            return finetune(found, to, options, monitor, group)
    except KeyboardInterrupt:
        monitor.say("what was done so far is kept: the same command with --resume continues it")
        raise


def folder_of(data: str, data_root: Path | None, monitor: Monitor) -> str:
    """DATA as a folder or CSV on disk: torchvision:NAME is written out first."""
    if not data.startswith("torchvision:"):
        return data
    from edgetl.transfer.datasets import materialise

    return str(materialise(data, data_root, monitor))


def _show(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{result['backbone']}, {result['strategy']}; kept: {result['chosen']}", title_justify="left")
    for column in ("", "accuracy", "95 % interval", "macro F1", "images"):
        table.add_column(column, justify="left" if not column else "right")
    for name, key in (("linear probe, val", "linear_probe"), ("kept, val", "val"), ("kept, test", "test")):
        found = result[key]
        if found:
            low, high = found["accuracy_ci"]
            table.add_row(
                name, f"{found['accuracy']:.3f}", f"{low:.3f} - {high:.3f}", f"{found['macro_f1']:.3f}", str(found["n"])
            )
    console.print(table)
    console.print(result["selection"]["why"], soft_wrap=True, markup=False)
    if found := result.get("adaptation"):
        kept = "source-only" if found["kept"] == "none" else found["kept"]
        console.print(f"{found['n_unlabelled']} unlabelled images; kept: {kept}: {found['why']}", soft_wrap=True)
        if found["kept"] != "none":
            said = "val and test above are DATA's images, from which the network has been moved to the unlabelled ones;"
            console.print(f"{said} how often it is right there, labels of some of them would tell", soft_wrap=True)
    show_evaluation(console, result)
    bundle = result["bundle"]
    line = f"{bundle}  ({result['seconds']:.0f} s). Next: edgetl export {shell(bundle)} --int8"
    console.print(line, soft_wrap=True, markup=False)
