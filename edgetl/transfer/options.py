"""What `edgetl finetune` can be told, and the strategies, side by side. No heavy import: the CLI reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetl.errors import InputError
from edgetl.spec import Fit
from edgetl.transfer.adapt import methods

DEFAULT_BACKBONE = "resnet18"
FROZEN_STATISTICS_BELOW = 10_000  # training images; below it, statistics that move cost points (docs/log.md)


@dataclass(frozen=True)
class Strategy:
    """One way from pretrained weights to a classifier.

    `body_lr`: learning rate of the backbone's last stage relative to the head's; each earlier stage has
    `stage_decay` of the next one's. `effort` scales the number of epochs.
    """

    name: str
    trains: bool = True  # beyond the probe
    from_probe: bool = True  # the head starts as the linear probe's solution
    pretrained: bool = True  # wants weights
    competes: bool = True  # the probe is kept where it is better on val
    gradual: bool = False  # stages of the body join one after the other
    body_lr: float = 0.3
    stage_decay: float = 0.9
    head_lr: float = 1e-3
    effort: float = 1.0
    freezes_statistics: bool = True  # BatchNorm, on small sets

    @property
    def auxiliary(self) -> bool:
        """Whether auxiliary classifiers (Inception's) train along: where the head starts fresh, as they do.

        Where it starts as the probe's solution the body already serves it; fresh classifiers in its middle would
        pull it away from there, which is what probing first is to prevent (Kumar et al. 2022).
        """
        return self.trains and not self.from_probe

    @property
    def starts_at_weights(self) -> bool:
        """Whether there is a training that begins at pretrained weights: something to keep, or to average with."""
        return self.trains and self.pretrained


STRATEGIES = {
    s.name: s
    for s in (
        # Probe, then everything from the probe's solution (Kumar et al. 2022).
        Strategy("lp-ft"),
        # The probe alone: the backbone stays as it is, bit for bit.
        Strategy("linear-probe", trains=False),
        # Closed-form classifiers on the frozen features, the best by cross-validation (transfer/classifiers.py).
        Strategy("features", trains=False),
        # From the probe's solution, stage by stage from the head, each with 1/2.6 of the next one's learning rate
        # (ULMFiT: Howard & Ruder 2018, sections 3.2 and 3.3).
        Strategy("gradual", gradual=True, stage_decay=1 / 2.6),
        # Everything at once from a fresh head.
        Strategy("full", from_probe=False, effort=1.5),
        # No pretrained weights.
        Strategy(
            "scratch",
            from_probe=False,
            pretrained=False,
            competes=False,
            body_lr=1.0,
            stage_decay=1.0,
            head_lr=2e-3,
            effort=4.0,
            freezes_statistics=False,
        ),
        # Picks among the others once the probe is known (transfer/auto.py).
        Strategy("auto"),
    )
}
KEEPS = ("none", "l2sp", "delta", "bss")


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of `edgetl finetune` (cli.md); None means: chosen from the data and the weights."""

    backbone: str | None = None
    backbone_args: str = ""
    weights: str = "auto"
    strategy: str | None = None
    epochs: int | None = None
    head_epochs: int = 0
    lr: float | None = None
    batch_size: int | None = None
    image_size: int | None = None
    fit: Fit = Fit.CROP
    device: str = "auto"
    amp: str = "auto"
    seed: int = 0
    keep: str = "none"
    teacher: Path | None = None
    adapt: str = "none"
    unlabelled: Path | None = None
    adapt_classes: str = "same"
    folds: int | None = None
    label_budget: tuple[int, ...] = ()
    abstain_precision: float | None = None
    near_duplicates: str = "warn"
    skip_corrupt: bool = False
    golden_photos: bool = True
    resume: bool = False
    overwrite: bool = False
    command: tuple[str, ...] = ()  # for local.json; sys.argv where it is empty

    def __post_init__(self) -> None:
        for name, value, least, usual in (
            ("--epochs", self.epochs, 1, 20),
            ("--head-epochs", self.head_epochs, 0, 1),
            ("--batch-size", self.batch_size, 2, 32),
            ("--image-size", self.image_size, 1, 224),
            ("--folds", self.folds, 2, 5),
            ("--label-budget", min(self.label_budget, default=None), 1, 10),
        ):
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}", value, f"such as {name} {usual}")
        if self.lr is not None and not 0 < self.lr < 10:
            raise InputError("--lr must be above 0 and below 10", self.lr, "such as .001, or leave it out")
        if self.abstain_precision is not None and not 0 < self.abstain_precision < 1:
            raise InputError("--abstain-precision lies between 0 and 1", self.abstain_precision, "such as .95")
        _one_of("--device", self.device, ("auto", "cpu", "cuda"))
        _one_of("--near-duplicates", self.near_duplicates, ("warn", "together", "ignore"))
        _one_of("--amp", self.amp, ("auto", "off", "bf16", "fp16"))
        if self.strategy is not None:
            _one_of("--strategy", self.strategy, tuple(STRATEGIES))
        if not self.plan.pretrained and self.weights not in ("auto", "none"):
            raise InputError("scratch starts from random weights", "--weights " + self.weights, "leave --weights out")
        self._check_keep()
        self._check_teacher()
        self._check_adapt()

    def _check_keep(self) -> None:
        _one_of("--keep", self.keep, KEEPS)
        if self.keep != "none" and (not self.plan.starts_at_weights or self.weights == "none"):
            raise InputError(
                "--keep holds a training to the pretrained weights it starts from, and here is none",
                f"--keep {self.keep} --strategy {self.plan.name} --weights {self.source}",
                "use it with lp-ft, gradual or full, and with weights",
            )

    def _check_teacher(self) -> None:
        if self.teacher is not None and not self.plan.trains:
            raise InputError(
                "a teacher teaches what is trained, and here the backbone stays frozen",
                f"--teacher with --strategy {self.plan.name}",
                "use lp-ft, gradual, full or scratch",
            )
        if self.unlabelled is not None and self.teacher is None and self.adapt == "none":
            raise InputError(
                "--unlabelled is for --teacher and --adapt", self.unlabelled, "give one of them, or leave it out"
            )

    def _check_adapt(self) -> None:
        _one_of("--adapt", self.adapt, methods.CHOICES)
        _one_of("--adapt-classes", self.adapt_classes, ("same", "source"))
        if self.adapt != methods.NONE and self.unlabelled is None:
            raise InputError("--adapt wants images to adapt to", f"--adapt {self.adapt}", "give --unlabelled DIR")
        if self.adapt_classes != "same" and self.adapt == methods.NONE:
            raise InputError("--adapt-classes is for --adapt", self.adapt_classes, "leave it out")

    @property
    def plan(self) -> Strategy:
        """The strategy: the one asked for; else scratch without weights, lp-ft with."""
        return STRATEGIES[self.strategy or ("scratch" if self.weights == "none" else "lp-ft")]

    @property
    def source(self) -> str:
        """`--weights`, where scratch means none."""
        return self.weights if self.plan.pretrained else "none"

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run, for --resume: every option that can change the result."""
        out = asdict(self)
        for key in ("resume", "overwrite", "command"):
            del out[key]
        # The file's name without its folder: this travels in the manifest, and the content has its own sha256 there.
        out.update(fit=str(self.fit), strategy=self.plan.name, weights=Path(self.source).name)
        out.update(label_budget=list(self.label_budget), teacher=_name(self.teacher), unlabelled=_name(self.unlabelled))
        return out


def budgets_of(text: str) -> tuple[int, ...]:
    """`--label-budget 5,10,25`: labels a class, ascending; () for "". Raises InputError."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isdecimal() for part in parts):
        raise InputError("--label-budget wants labels a class", text, "such as 5,10,25,50")
    return tuple(sorted({int(part) for part in parts}))


def _name(path: Path | None) -> str | None:
    return path.name if path else None


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError("unknown value of " + name, value, "use one of " + ", ".join(allowed))
