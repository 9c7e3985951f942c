"""Frames of videos through a real GStreamer, images of folders, and what is no source."""

from __future__ import annotations

import io
import os
import shutil
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.device import sources
from edgetl.device.sources import _stride, has_element, open_source, pipeline_for
from edgetl.errors import BackendError, DataError, InputError

needs_gstreamer = pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="no gst-launch-1.0 here")
COLOUR = "gst:videotestsrc num-buffers=4 pattern=solid-color foreground-color=0xff204060 ! video/x-raw,format=RGB"


@needs_gstreamer
@pytest.mark.parametrize("width, height", [(30, 22), (31, 7), (64, 48)])
def test_pixels_come_as_they_are_whatever_the_row_padding(width: int, height: int) -> None:
    frames = list(open_source(f"{COLOUR},width={width},height={height}"))
    assert len(frames) >= 1 and sum(f.dropped for f in frames) + len(frames) == 4
    for frame in frames:
        assert frame.image is not None and frame.image.size == (width, height)
        np.testing.assert_array_equal(
            np.asarray(frame.image), np.full((height, width, 3), (0x20, 0x40, 0x60), np.uint8)
        )


@needs_gstreamer
def test_a_slow_reader_sees_the_newest_frame_and_the_count_of_those_it_missed() -> None:
    source = "gst:videotestsrc num-buffers=60 is-live=true ! video/x-raw,width=32,height=32,framerate=100/1"
    seen = []
    for frame in open_source(source):
        seen.append(frame)
        time.sleep(0.1)  # of a source that has its 60 frames after 0.6 s
    assert 1 <= len(seen) < 60 and sum(f.dropped for f in seen) + len(seen) == 60
    numbers = [int(f.name.split()[1]) for f in seen]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 59


@needs_gstreamer
def test_leaving_early_ends_the_pipeline() -> None:
    source = "gst:videotestsrc is-live=true ! video/x-raw,width=32,height=32"
    frames = open_source(source)
    assert len(list(islice(frames, 2))) == 2
    frames.close()  # type: ignore[attr-defined]  # a generator


@needs_gstreamer
@pytest.mark.parametrize("source", ["/dev/video99", "rtsp://127.0.0.1:9/none", "gst:nosuchelement"])
def test_a_source_that_fails_says_why(source: str) -> None:
    with pytest.raises(BackendError, match="video source failed"):
        list(open_source(source))


@needs_gstreamer
def test_a_password_is_in_no_error() -> None:
    with pytest.raises(BackendError) as caught:
        list(open_source("rtsp://guest:se@cret@127.0.0.1:9/none"))
    assert "cret" not in str(caught.value) and "rtsp://guest:***@127.0.0.1:9/none" in str(caught.value)


@pytest.mark.parametrize("source", ["http://guest:s3cret@cam/live", "gst:rtspsrc location='rtsp://guest:s3cret@cam"])
def test_nor_is_it_in_what_is_refused_unasked(source: str) -> None:
    with pytest.raises(InputError) as caught:
        next(iter(open_source(source)))
    assert "s3cret" not in str(caught.value) and "guest:***@cam" in str(caught.value)


def test_a_url_is_one_argument_whatever_is_in_it() -> None:
    words = pipeline_for("rtsp://cam/a b ! filesink location=/etc/passwd")
    assert words[1] == "location=rtsp://cam/a b ! filesink location=/etc/passwd" and words.count("!") == 1
    assert pipeline_for("/dev/video0") == ["v4l2src", "device=/dev/video0", "!", "decodebin"]
    fetched = ["!", "decodebin", "!", "nvvidconv", "!", "video/x-raw,format=BGRx"]
    assert pipeline_for("/dev/video0", nvidia=True)[2:] == fetched
    assert pipeline_for("gst:nvarguscamerasrc ! nvvidconv", nvidia=True) == ["nvarguscamerasrc", "!", "nvvidconv"]
    for broken in ("gst:", "gst:a 'b"):
        with pytest.raises(InputError):
            pipeline_for(broken)


def test_a_folder_in_path_order_with_bad_files_in_their_place(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.jpg", ".hidden.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / name)
    (tmp_path / "b/15.png").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("no image")
    frames = list(open_source(str(tmp_path)))
    assert [Path(f.name).name for f in frames] == ["a.jpg", "1.png", "15.png", "2.png"]
    assert [f.error is None for f in frames] == [True, True, False, True]
    with pytest.raises(DataError, match="no images"):
        list(open_source(str(tmp_path / "b/none")) if (tmp_path / "b/none").mkdir() is None else ())


@pytest.mark.parametrize("age", [0.1, -3600.0], ids=["just written", "written in the future"])
def test_a_growing_file_waits_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float) -> None:
    """It grows whenever the source sleeps, under a clock that is always `age` seconds past its last change."""
    whole = _png(64)
    late = tmp_path / "late.png"
    late.write_bytes(whole[:100])
    sizes = iter([*range(200, len(whole), len(whole) // 8), len(whole)])

    class Clock:
        @staticmethod
        def time() -> float:
            return late.stat().st_mtime + age

        @staticmethod
        def sleep(seconds: float) -> None:
            size = next(sizes, None)
            if size is not None:
                late.write_bytes(whole[:size])

    monkeypatch.setattr(sources, "time", Clock)
    frame = next(open_source(str(tmp_path), follow=True, poll=0.01))
    assert frame.error is None and frame.image is not None and frame.image.size == (64, 64)
    assert next(sizes, None) is None, "it had grown to its end before it was read"


def test_a_file_that_lies_there_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.png").write_bytes(_png(8))
    os.utime(tmp_path / "old.png", (1e9, 1e9))
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: pytest.fail("it waited"))
    assert next(open_source(str(tmp_path), follow=True)).error is None


def _png(size: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@needs_gstreamer
def test_elements_are_asked_for() -> None:
    assert has_element("videoconvert") and not has_element("nosuchelement")


@pytest.mark.parametrize("width, stride", [(1, 4), (2, 8), (4, 12), (30, 92), (224, 672)])
def test_rows_are_padded_to_four_bytes(width: int, stride: int) -> None:
    assert _stride(width) == stride
