"""What a distance between two domains means for transfer, as one word with its reason.

The limits were measured (`python -m benchmarks distance`) on the 18 ordered pairs within pacs_mini and within digits,
420 images a domain: how much of what a linear probe learns within the target a probe from the source keeps, chance
taken off. With ImageNet features (mobilenet_v2, 96 px) the 10 pairs below MMD^2 = 0.15 keep 47 % on average (24 to
74 %), the 8 above 12 % (0 to 32 %). The embedded backbone's features spread less: 14 pairs below 0.10 keep 64 % (33 to
99), 4 above 20 % (5 to 29). Halves of one domain: -0.002 to +0.001 (20 cases).
"""

from __future__ import annotations

from edgetl import embedded

SAME, SHIFTED, FAR = "same", "shifted", "far"
ALPHA = 0.01  # of the permutation test
SURE = 0.001  # of the classifier's test, the second one
TRIVIAL = 0.0015  # MMD^2 up to which a difference may be there, but no probe suffers from it
_FAR_FROM = 0.15
_FAR_FROM_EMBEDDED = 0.10


def far_from(backbone: str) -> float:
    """The MMD^2 from which on two domains are far, on features of this backbone."""
    return _FAR_FROM_EMBEDDED if backbone == embedded.NAME else _FAR_FROM


def verdict(mmd2: float, p_value: float, limit: float, apart: float = 1.0) -> tuple[str, str]:
    """("same" | "shifted" | "far", why) from MMD^2, its permutation p and the limit from which on it is far.

    `apart`: the p of a classifier that tells the domains apart (distance.separation_of). Of one domain, at most
    ALPHA + SURE are called another.
    """
    if mmd2 < TRIVIAL and min(p_value, apart) <= ALPHA:
        return SAME, f"the difference is real (p = {min(p_value, apart):.2g}) but tiny: MMD^2 below {TRIVIAL}"
    if p_value > ALPHA and apart > SURE:
        chance = f"chance alone makes such a difference (p = {p_value:.3f}, above {ALPHA})"
        return (
            SAME,
            chance if mmd2 < TRIVIAL else chance + "; with so few images a real one may hide in it, more would tell",
        )
    seen = f"not by chance (p = {p_value:.3f})"
    if p_value > ALPHA:
        seen = f"a classifier tells them apart (p = {apart:.1g}; MMD^2 alone would not, p = {p_value:.3f})"
    if mmd2 < limit:
        return SHIFTED, f"{seen}, and MMD^2 is below {limit:g}: adapt (finetune --adapt)"
    return FAR, f"MMD^2 is {limit:g} or more: what is learnt on the source may hurt on the target; label some of it"
