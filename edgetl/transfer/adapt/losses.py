"""The losses of `--adapt` as modules with one call: features and logits of both domains in, a scalar out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from edgetl.transfer.adapt import adversarial, confusion, discrepancy


class Codes(NamedTuple):
    """What the network says of a batch of one domain: features float32 (B, D) and logits float32 (B, C)."""

    features: torch.Tensor
    logits: torch.Tensor


class AdaptationLoss(nn.Module):
    """Base: `progress` is the share of the training that is done, in [0, 1]. Parameters are a discriminator's."""

    def forward(self, source: Codes, target: Codes, progress: float) -> torch.Tensor:
        """Scalar float32, its weight not yet in it."""
        raise NotImplementedError


class Mmd(AdaptationLoss):
    """`discrepancy.mk_mmd` of the features."""

    def forward(self, source: Codes, target: Codes, progress: float) -> torch.Tensor:
        """See the class."""
        return discrepancy.mk_mmd(source.features, target.features)


class JointMmd(AdaptationLoss):
    """`discrepancy.joint_mmd` of features and class probabilities."""

    def forward(self, source: Codes, target: Codes, progress: float) -> torch.Tensor:
        """See the class."""
        layers = [(codes.features, codes.logits.softmax(1)) for codes in (source, target)]
        return discrepancy.joint_mmd(*layers)


class Coral(AdaptationLoss):
    """`discrepancy.coral` of the features (Deep CORAL)."""

    def forward(self, source: Codes, target: Codes, progress: float) -> torch.Tensor:
        """See the class."""
        return discrepancy.coral(source.features, target.features)


class Mcc(AdaptationLoss):
    """`confusion.class_confusion` of the target's logits."""

    def forward(self, source: Codes, target: Codes, progress: float) -> torch.Tensor:
        """See the class."""
        return confusion.class_confusion(target.logits)


class Dann(AdaptationLoss):
    """Domain-adversarial training: min over discriminator, max over features of the domain cross-entropy.

    L = (BCE_source + BCE_target) / 2, its gradient reversed and scaled by `adversarial.reversal(progress)` where it
    enters the features (Ganin et al. 2016, eq. 13 and section 5.2.2).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.discriminator = adversarial.Discriminator(width, hidden)

    def forward(self, source: Codes, target: Codes, progress: float) -> torch.Tensor:
        """See the class. Both domains pass the discriminator (and its BatchNorm) together."""
        both = torch.cat([source.features, target.features])
        logits = self.discriminator(adversarial.reverse(both, adversarial.reversal(progress)))
        return adversarial.domain_loss(logits, len(source.features))


class Cdan(AdaptationLoss):
    """CDAN+E (Long et al. 2018, eq. 9 and 10): DANN whose discriminator sees features (x) probabilities.

    Rows are weighed by 1 + exp(-H) (`adversarial.certainty`). The probabilities are detached, as in the authors'
    code: the discriminator is conditioned on the answers and does not change them.
    """

    def __init__(self, width: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.map = adversarial.ConditionalMap(width, classes)
        self.discriminator = adversarial.Discriminator(self.map.width, hidden)

    def forward(self, source: Codes, target: Codes, progress: float) -> torch.Tensor:
        """See the class."""
        sources = len(source.features)
        probabilities = torch.cat([source.logits, target.logits]).softmax(1).detach()
        features = torch.cat([source.features, target.features])
        seen = self.map(adversarial.reverse(features, adversarial.reversal(progress)), probabilities)
        weights = adversarial.certainty(probabilities, sources)
        return adversarial.domain_loss(self.discriminator(seen), sources, weights)


def loss_of(method: str, width: int, classes: int, hidden: int = adversarial.HIDDEN) -> AdaptationLoss:
    """The loss of a method for features (B, width) and logits (B, classes), in training mode.

    A discriminator has two layers of `hidden` and is drawn from torch's default generator. Raises KeyError for a
    method that has no loss.
    """
    if method == "dann":
        return Dann(width, hidden)
    if method == "cdan":
        return Cdan(width, classes, hidden)
    return {"mmd": Mmd, "jmmd": JointMmd, "coral": Coral, "mcc": Mcc}[method]()
