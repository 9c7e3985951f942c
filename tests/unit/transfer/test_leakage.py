"""Near-duplicates: the search finds all, the copies people make are found, and what only looks alike is not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits

from edgetl.errors import InputError
from edgetl.images import ReadOptions, decode, read_data
from edgetl.monitor import Monitor
from edgetl.transfer import hamming, leakage
from edgetl.transfer.fingerprint import Fingerprints, fingerprint, stacked
from edgetl.transfer.hamming import near
from edgetl.transfer.near_duplicates import Match, limits_of, matches
from edgetl.transfer.views import PLAIN, REARRANGED, View, cuts, thumbs

Picture = Image.Image


# --- the search


@pytest.fixture(params=["tables", "all with all"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sets are compared all with all: here, both."""
    if request.param == "tables":
        monkeypatch.setattr(hamming, "CHUNK", 1)


@pytest.mark.usefixtures("search")
def test_every_pair_within_the_radius_is_found_and_no_other() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, 600, dtype=np.uint64)
    queries = np.concatenate([codes[:200], rng.integers(0, 2**64, 100, dtype=np.uint64)])
    for i in range(200):  # i % 15 bits turned, anywhere
        for bit in rng.permutation(64)[: i % 15]:
            queries[i] ^= np.uint64(1) << np.uint64(bit)
    want = {(int(q), int(c)) for q, c in np.argwhere(np.bitwise_count(queries[:, None] ^ codes[None]) <= 12)}
    found = [
        pair
        for q, c in near(queries, codes, 12, np.ones(300, bool))
        for pair in zip(q.tolist(), c.tolist(), strict=True)
    ]
    assert set(found) == want
    assert len(want) >= 170


@pytest.mark.usefixtures("search")
def test_crowds_are_found_whole_and_a_served_query_is_not_looked_up_again() -> None:
    codes = np.zeros(500, np.uint64)
    seen = {c for _, found in near(codes[:1], codes, 12, np.ones(1, bool)) for c in found.tolist()}
    assert seen == set(range(500))
    open_, compared = np.ones(500, bool), 0
    for query, _ in near(codes, codes, 12, open_):
        compared += len(query)
        open_[query] = False
    assert compared <= 500 * 16


@given(st.lists(st.integers(0, 2**64 - 1), max_size=8), st.lists(st.integers(0, 2**64 - 1), max_size=8))
@settings(max_examples=25)
def test_any_codes_at_all(left: list[int], right: list[int]) -> None:
    queries, codes = np.array(left, np.uint64), np.array(right, np.uint64)
    found = {
        pair
        for q, c in near(queries, codes, 12, np.ones(len(left), bool))
        for pair in zip(q.tolist(), c.tolist(), strict=True)
    }
    assert found == {(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if (a ^ b).bit_count() <= 12}


# --- pictures


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Picture:
    """A picture with the statistics of photographs: a random field whose amplitudes fall as 1/f, in colour."""
    rng = np.random.default_rng(seed)
    height, width = size[1], size[0]
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(fy, fx), 1 / width) ** 1.2
    field = np.stack([np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) * fall).real for _ in range(3)], 2)
    field += 2 * field.mean(2, keepdims=True)
    low, high = np.percentile(field, (1, 99))
    return Image.fromarray((np.clip((field - low) / (high - low), 0, 1) * 255).astype(np.uint8))


def jpeg(image: Picture, quality: int) -> Picture:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return decode(stream.getvalue())


def cut(image: Picture, share: float) -> Picture:
    width, height = image.size
    x, y = round(width * share / 2), round(height * share / 2)
    return image.crop((x, y, width - x, height - y))


def corner(image: Picture, share: float) -> Picture:
    """Without `share` of each side, at the top and the left."""
    return jpeg(image.crop((round(image.width * share), round(image.height * share), *image.size)), 80)


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "JPEG 40": lambda image: jpeg(image, 40),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "mirrored": ImageOps.mirror,
    "cut by 4 %": lambda image: cut(image, 0.04),
    "cut by 10 %": lambda image: cut(image, 0.10),
    "cut by 20 %": lambda image: cut(image, 0.20),
    "a corner, 5 % off": lambda image: corner(image, 0.05),
    "a corner, 12.5 % off": lambda image: corner(image, 0.125),
    "a corner, 20 % off": lambda image: corner(image, 0.20),
    "a side, 15 % off": lambda image: jpeg(image.crop((0, 0, round(image.width * 0.85), image.height)), 80),
    "upside down": ImageOps.flip,
    "turned by 90 degrees": lambda image: image.rotate(90, expand=True),
    "turned by 180 degrees": lambda image: image.rotate(180),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


def prints(images: list[Picture]) -> Fingerprints:
    return stacked([fingerprint(np.asarray(image.convert("RGB"))) for image in images])


def found_in(images: list[Picture], held: int) -> list[Match]:
    """What of the last `held` images is like one of the others."""
    made = prints(images)
    rows = np.arange(len(images))
    limits = limits_of(made, np.zeros(len(images), np.int64), seed=0)
    return matches(made, rows[-held:], rows[:-held], limits)


@pytest.fixture(scope="module")
def scenes() -> list[Picture]:
    return [scene(i) for i in range(120)]


@pytest.mark.parametrize("how", COPIES)
def test_the_copies_that_people_make_are_found(scenes: list[Picture], how: str) -> None:
    copies = [COPIES[how](image) for image in scenes[:20]]
    found = found_in([*scenes, *copies], 20)
    assert len(found) >= 19
    assert all(match.like == match.image - len(scenes) for match in found)
    kinds = {match.how for match in found}
    wanted = {"mirrored": "mirrored", "upside down": "mirrored", "turned": "turned", "cut": "cut", "a": "cut"}
    name = next((kind for start, kind in wanted.items() if how.startswith(start)), "plain")
    assert kinds <= ({"cut", "plain"} if name == "cut" else {name})


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_a_corner_is_found_whichever_of_the_two_was_cut(scenes: list[Picture], share: float) -> None:
    corners = [corner(image, share) for image in scenes[:20]]
    found = found_in([*scenes[20:], *corners, *scenes[:20]], 20)
    assert len(found) >= 19 and all(match.image - match.like == 20 for match in found)


def test_the_hash_is_that_of_imagehash(scenes: list[Picture]) -> None:
    made = prints(scenes)
    theirs = [int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "big") for image in scenes]
    assert np.bitwise_count(made.codes ^ np.array(theirs, np.uint64)).max() <= 2  # they round their grey twice


@given(st.sampled_from([*cuts(), *REARRANGED, PLAIN]), st.integers(0, 2**32 - 1))
def test_a_view_is_what_pillow_shows(view: View, seed: int) -> None:
    """Of a smooth picture: the part that is cut out, mirrored, turned."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8))
    picture = coarse.resize((32, 32), Image.Resampling.BICUBIC)
    shown = picture.transpose(Image.Transpose.TRANSPOSE) if view.turned else picture
    for ends, turn in ((view.x, Image.Transpose.FLIP_LEFT_RIGHT), (view.y, Image.Transpose.FLIP_TOP_BOTTOM)):
        shown = shown.transpose(turn) if ends[0] > ends[1] else shown
    (left, right), (top, bottom) = (tuple(32 * end for end in sorted(ends)) for ends in (view.x, view.y))
    wanted = shown.resize((16, 16), Image.Resampling.BILINEAR, (left, top, right, bottom))
    found = thumbs(np.asarray(picture)[None], view)[0]
    assert np.abs(found - np.asarray(wanted, float)).mean() < 4


def test_different_pictures_are_not_near_duplicates(scenes: list[Picture]) -> None:
    assert found_in(scenes, 60) == []


def test_written_digits_look_alike_and_are_not_near_duplicates() -> None:
    """The trap: the hashes of two ones are near; 8 x 8 scans, 10 classes, no scan twice."""
    digits = load_digits()
    images = [Image.fromarray((scan * 15.9).astype(np.uint8)).resize((32, 32)) for scan in digits.images]
    made = prints(images)
    rows = np.random.default_rng(0).permutation(len(images))
    limits = limits_of(made, digits.target, seed=0)
    near_hashes = {
        q
        for query, _ in near(made.codes[rows[:500]], made.codes[rows[500:]], 12, np.ones(500, bool))
        for q in query.tolist()
    }
    assert len(near_hashes) > 250, "else this would be no trap"
    assert len(matches(made, rows[:500], rows[500:], limits)) <= 2


def test_flat_pictures_are_nobodys_duplicates() -> None:
    rng = np.random.default_rng(0)
    flat = [Image.fromarray(rng.integers(200, 204, (48, 48, 3), dtype=np.uint8)) for _ in range(30)]
    assert found_in(flat, 10) == []


def test_a_burst_is_found_although_its_whole_class_looks_alike(scenes: list[Picture]) -> None:
    rng = np.random.default_rng(1)
    frames = [
        Image.fromarray(np.clip(np.asarray(scenes[0], int) + rng.normal(0, 6, (120, 160, 1)), 0, 255).astype(np.uint8))
        for _ in range(40)
    ]
    images = [*frames[:30], *scenes[20:80], *frames[30:]]
    made = prints(images)
    targets = np.array([0] * 30 + [1] * 60 + [0] * 10)
    rows = np.arange(100)
    assert len(matches(made, rows[90:], rows[:90], limits_of(made, targets, 0))) == 10


def test_no_image_is_its_own_duplicate_and_tiny_sets_are_fine(scenes: list[Picture]) -> None:
    made = prints(scenes[:3])
    rows = np.arange(3)
    assert matches(made, rows, rows, limits_of(made, np.arange(3), 0)) == []
    empty = rows[:0]
    assert matches(made, empty, rows, limits_of(made, np.arange(3), 0)) == []
    assert len(limits_of(prints(scenes[:1]), np.zeros(1, np.int64), 0)) == 1


# --- splits


class Heard(Monitor):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


def write(folder: Path, scenes: list[Picture], sides: tuple[str, ...] = ("",)) -> Path:
    """Two classes of 40 scenes each; the first ten of each have a recompressed copy. In `sides` by turns."""
    for label in range(2):
        for i in range(40):
            for name, image in ((f"{i:02}.png", scenes[label * 40 + i]), (f"copy{i:02}.png", None)):
                side = sides[i % len(sides)] if image is not None else sides[(i + 1) % len(sides)]
                place = folder / side / "ab"[label]
                place.mkdir(parents=True, exist_ok=True)
                if image is not None:
                    image.save(place / name)
                elif i < 10:
                    jpeg(scenes[label * 40 + i], 50).save(place / name)
    return folder


def loaded(folder: Path) -> leakage.Prints:
    return leakage.Prints(lambda sample: np.asarray(decode((folder / sample.path).read_bytes())))


def test_pairs_across_drawn_splits_are_told_and_kept_together_on_request(tmp_path: Path, scenes: list[Picture]) -> None:
    data = read_data(str(write(tmp_path, scenes)), ReadOptions(val_fraction=0.25, test_fraction=0.25))
    prints_ = loaded(tmp_path)
    where = {s.path: name for name in ("train", "val", "test") for s in data.split(name)}
    want = {
        tuple(sorted((f"{c}/{i:02}.png", f"{c}/copy{i:02}.png")))
        for c in "ab"
        for i in range(10)
        if where[f"{c}/{i:02}.png"] != where[f"{c}/copy{i:02}.png"]
    }
    assert len(want) >= 6
    heard = Heard()
    same, rows = leakage.settled(data, prints_, "warn", heard)
    assert same == data
    assert {tuple(sorted((row["image"], row["like"]))) for row in rows} == want
    assert all(where[row["image"]] == row["split"] and where[row["like"]] == row["like_split"] for row in rows)
    assert f"{len(want)} of " in heard.lines[0] and rows[0]["image"] in heard.lines[0]
    assert "--near-duplicates together" in heard.lines[0]
    joined, left = leakage.settled(data, prints_, "together", heard)
    assert left == [] and len(heard.lines) == 1
    assert sorted(s.path for s in joined.all()) == sorted(s.path for s in data.all())
    assert abs(len(joined.split("val")) - len(data.split("val"))) <= 2
    assert leakage.settled(data, prints_, "together", heard)[0] == joined


def test_given_splits_are_never_drawn_again(tmp_path: Path, scenes: list[Picture]) -> None:
    data = read_data(str(write(tmp_path, scenes, ("train", "val", "test"))))
    heard = Heard()
    _, rows = leakage.settled(data, loaded(tmp_path), "warn", heard)
    assert len(rows) == 20
    assert {(row["split"], row["like_split"]) for row in rows} == {("val", "train"), ("test", "val"), ("test", "train")}
    assert "move or remove them" in heard.lines[0]
    leakage.check_wish(data, "warn")
    with pytest.raises(InputError, match="they are given"):
        leakage.check_wish(data, "together")
