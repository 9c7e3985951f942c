"""From a clean glyph to something that hands, pens and scanners could have made. Torch, on batches.

The order is that of the world: stroke width, the hand (affine and elastic), the scanner (resolution,
blur, contrast, polarity, noise). All randomness comes from the generator that is handed in.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

SIZE = 32  # pixels a side of what comes out
RESOLUTIONS = (8, 8, 8, 10, 12, 16, 32)  # pixels a side that the scanner saw; 8 thrice: the hardest to read
ROTATION = 0.30  # radians, either way
SHEAR = 0.35
SCALE = (0.85, 1.6)  # of a glyph that fills 44 of 64 pixels
SHIFT = 0.12  # of half the side
ELASTIC = 0.18  # of half the side, peak of a random field with 5 x 5 knots
NOISE = 0.07  # standard deviation at most, of the full range


def view(masks: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """uint8 (B, 64, 64) masks -> float32 (B, 3, 32, 32) RGB in 0-1, one random view of each."""
    ink = masks.to(torch.float32).div(255).unsqueeze(1)
    ink = warped(stroked(ink, rng), rng)
    chunks = ink.chunk(4)
    ink = torch.cat([scanned(chunk, RESOLUTIONS[_pick(len(RESOLUTIONS), rng)], rng) for chunk in chunks])
    return coloured(ink, rng)


def stroked(ink: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """float32 (B, 1, H, W): thinner, as it is, or one of three thicker pens; a quarter of a batch at a time."""
    out = []
    for chunk in ink.chunk(4):
        pen = (-3, 1, 3, 5, 9)[_pick(5, rng)]
        if pen < 0:
            out.append(-F.max_pool2d(-chunk, -pen, 1, -pen // 2))
        else:
            out.append(F.max_pool2d(chunk, pen, 1, pen // 2))
    return torch.cat(out)


def warped(ink: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """float32 (B, 1, H, W): rotated, sheared, scaled on each axis, shifted, and bent by a smooth field."""
    count, _, height, width = ink.shape
    angle = _uniform(count, -ROTATION, ROTATION, rng)
    shear = _uniform(count, -SHEAR, SHEAR, rng)
    zoom = _uniform(count, *SCALE, rng)
    across = zoom * _uniform(count, 0.75, 1.3, rng)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = torch.stack([cos / across, (shear * cos - sin) / zoom, _uniform(count, -SHIFT, SHIFT, rng)], 1)
    lower = torch.stack([sin / across, (shear * sin + cos) / zoom, _uniform(count, -SHIFT, SHIFT, rng)], 1)
    grid = F.affine_grid(torch.stack([rows, lower], 1), [count, 1, height, width], align_corners=False)
    knots = torch.rand(count, 2, 5, 5, generator=rng) * 2 - 1
    knots *= _uniform(count, 0, ELASTIC, rng).view(-1, 1, 1, 1)
    field = F.interpolate(knots, size=(height, width), mode="bicubic", align_corners=True)
    return F.grid_sample(ink, grid + field.permute(0, 2, 3, 1), mode="bilinear", align_corners=False)


def scanned(ink: torch.Tensor, resolution: int, rng: torch.Generator) -> torch.Tensor:
    """float32 (B, 1, H, W) -> (B, 1, 32, 32): seen at `resolution` pixels a side, with a soft or a sharp lens."""
    if _pick(3, rng) == 0:
        ink = F.avg_pool2d(ink, 5, 1, 2)
    small = F.adaptive_avg_pool2d(ink, resolution)
    # A scan is often stretched until its darkest place is black.
    peak = small.amax((1, 2, 3), keepdim=True).clamp_min(0.2)
    small = (small / peak).pow(_uniform(len(ink), 0.5, 1.6, rng).view(-1, 1, 1, 1))
    return (
        small if resolution == SIZE else F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    )


def coloured(ink: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """float32 (B, 1, 32, 32) of ink -> (B, 3, 32, 32) RGB: bright on dark or dark on bright, a quarter in colour."""
    count = len(ink)
    paper = _uniform(count, 0, 0.3, rng).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    pen = _uniform(count, 0.6, 1, rng).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    tint = (torch.rand(count, 1, 1, 1, generator=rng) < 0.25).to(torch.float32)
    paper = paper + tint * 0.3 * torch.rand(count, 3, 1, 1, generator=rng)
    pen = pen - tint * 0.3 * torch.rand(count, 3, 1, 1, generator=rng)
    image = paper + (pen - paper) * ink
    inverted = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
    image = torch.where(inverted, 1 - image, image)
    grain = torch.randn(image.shape[0], 1, SIZE, SIZE, generator=rng) * _uniform(count, 0, NOISE, rng).view(-1, 1, 1, 1)
    return (image + grain).clamp(0, 1)


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=rng) * (high - low) + low


def _pick(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=rng))
