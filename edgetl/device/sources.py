"""Where a stream's images come from: a folder, a camera, a network stream. Python 3.8.

Video goes through gst-launch-1.0, which JetPack preinstalls: it decodes with the board's own decoders and hands
over raw RGB frames on a pipe. So this needs no OpenCV and no GStreamer binding.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Iterator, List, Optional, Set, Tuple

from PIL import Image

from edgetl.errors import BackendError, DataError, InputError
from edgetl.images import EXTENSIONS, decode, read_bytes

_SETTLED_S = 0.2  # a file that has not grown for so long is taken to be whole
_CAPS = re.compile(r"fdsink.*caps = video/x-raw.*?width=\(int\)(\d+).*?height=\(int\)(\d+)")
_NVIDIAS_CONVERTER = "nvvidconv"
_LIVE = ("/dev/video", "rtsp://", "rtsps://")
PIPELINE = "gst:"  # the head of a pipeline, for cameras that need their own source (nvarguscamerasrc)


@dataclass(frozen=True)
class Frame:
    """One image of a stream. `error` stands in its place where a file is no image; `dropped`: frames left out before.

    `name`: the file's path, or the frame's number. `seconds`: when it came, on time.time's clock.
    """

    name: str
    image: Optional[Image.Image]
    seconds: float
    error: Optional[DataError] = None
    dropped: int = 0


def open_source(source: str, follow: bool = False, poll: float = 0.5) -> Iterator[Frame]:
    """The images of a folder (in path order; `follow`: and those that come later), a camera, a URL, or a pipeline.

    Raises DataError, InputError or BackendError when the first image is asked for.
    """
    if source.startswith(_LIVE + (PIPELINE,)):
        return video(pipeline_for(source, has_element(_NVIDIAS_CONVERTER)))
    if "://" in source:
        raise InputError(
            "unknown kind of source", _hidden(source), "use a folder, /dev/videoN, rtsp://... or gst:PIPELINE"
        )
    return folder(Path(source), follow, poll)


def folder(path: Path, follow: bool, poll: float) -> Iterator[Frame]:
    """Each image file below `path` once; a file that is still growing waits until it is whole."""
    if not path.is_dir():
        raise DataError("no such folder", path, "give a folder of images, /dev/videoN or rtsp://...")
    seen: Set[str] = set()
    while True:
        waiting = False
        for file in _images(path, seen):
            if follow and not _settled(file):
                waiting = True
                continue
            seen.add(str(file))
            yield _read(file)
        if not follow:
            if not seen:
                raise DataError("no images in this folder", path, "known: " + " ".join(EXTENSIONS))
            return
        time.sleep(_SETTLED_S if waiting else poll)


def _images(path: Path, seen: Set[str]) -> List[Path]:
    found = (p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and str(p) not in seen)
    return sorted(p for p in found if not p.name.startswith(".") and p.is_file())


def _settled(file: Path) -> bool:
    """A file whose modification lies in the past, by the file system's clock or (where that is off) by growth."""
    try:
        before = file.stat()
        if 0 <= time.time() - before.st_mtime < _SETTLED_S or before.st_mtime > time.time():
            time.sleep(_SETTLED_S)
            after = file.stat()
            return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    except OSError:
        return False
    return True


def _read(file: Path) -> Frame:
    try:
        return Frame(str(file), decode(read_bytes(file), file), time.time())
    except DataError as error:  # one bad file must not end a service
        return Frame(str(file), None, time.time(), error)


def has_element(name: str) -> bool:
    """Whether this machine's GStreamer has an element of that name."""
    tool = shutil.which("gst-inspect-1.0")
    if tool is None:
        return False
    done = subprocess.run([tool, "--exists", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def pipeline_for(source: str, nvidia: bool = False) -> List[str]:
    """The arguments of gst-launch-1.0 before the conversion to RGB. Raises InputError for a broken `gst:` text.

    `nvidia`: the decoders are NVIDIA's, whose frames lie in memory that only their own converter reads (NVIDIA's
    Accelerated GStreamer guide; not yet seen on hardware).
    """
    if source.startswith(PIPELINE):
        try:
            words = shlex.split(source[len(PIPELINE) :])
        except ValueError as error:
            said = _hidden("%s (%s)" % (source, error))
            raise InputError("the pipeline cannot be read", said, "close its quotes") from error
        if not words:
            raise InputError("an empty pipeline", source, "for example gst:nvarguscamerasrc ! nvvidconv")
        return words
    if source.startswith("/dev/video"):
        head = ["v4l2src", "device=" + source]
    else:  # the location is one argument of its own, so nothing in it is read as a pipeline
        head = ["rtspsrc", "location=" + source, "latency=200"]
    fetched = ["!", _NVIDIAS_CONVERTER, "!", "video/x-raw,format=BGRx"] if nvidia else []
    return head + ["!", "decodebin"] + fetched


def video(head: List[str]) -> Iterator[Frame]:
    """Frames of a pipeline as they come, the newest only: what arrives while one is classified is dropped and counted.

    Raises BackendError where there is no gst-launch-1.0, or the pipeline ends with an error.
    """
    tool = shutil.which("gst-launch-1.0")
    if tool is None:
        raise BackendError("no gst-launch-1.0 here", " ".join(head), "sudo apt install gstreamer1.0-tools")
    reading, writing = os.pipe()
    tail = ["!", "videoconvert", "!", "video/x-raw,format=RGB", "!", "fdsink", "fd=%d" % writing, "sync=false"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [tool, "-v"] + head + tail,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            pass_fds=(writing,),
        )
        os.close(writing)
        latest = _Latest(process, os.fdopen(reading, "rb"))
        try:
            yield from latest.frames()
            if process.wait() != 0:
                said.seek(0)
                words = said.read().decode("utf-8", "replace").strip().splitlines()
                reason = next((line for line in words if line.startswith("ERROR")), words[-1] if words else "")
                tried = "try it alone: gst-launch-1.0 " + " ".join(head)
                raise BackendError("the video source failed", _hidden(reason), _hidden(tried))
        finally:
            latest.close()


def _hidden(text: str) -> str:
    """`text` with the passwords of its URLs as ***: errors end up in logs and in bug reports."""
    return re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)


class _Latest:
    """Reads frames in a thread and keeps the newest: a slow network sees now, not a minute ago."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        self._process, self._pipe = process, pipe
        self._arrived = threading.Condition()
        self._size: Optional[Tuple[int, int]] = None
        self._held: Optional[Tuple[bytes, float]] = None
        self._number = -1  # of the newest frame
        self._ended = False
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._fill)]

    def close(self) -> None:
        """End the pipeline; its pipes are closed only when nobody reads from them any more."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._pipe.close()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def frames(self) -> Iterator[Frame]:
        """Until the source ends."""
        for thread in self._threads:
            thread.start()
        last = -1
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._ended or self._held is not None)
                held, number, self._held = self._held, self._number, None
            if held is None:
                return
            yield Frame("frame %d" % number, self._image(held[0]), held[1], dropped=number - last - 1)
            last = number

    def _listen(self) -> None:
        """gst-launch's -v lines tell the frames' size on fdsink's pad; the rest is read away."""
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            match = _CAPS.search(raw.decode("utf-8", "replace"))
            if match:
                with self._arrived:
                    self._size = (int(match.group(1)), int(match.group(2)))
                    self._arrived.notify_all()
        with self._arrived:
            self._ended = self._ended or self._size is None
            self._arrived.notify_all()

    def _fill(self) -> None:
        with self._arrived:
            self._arrived.wait_for(lambda: self._ended or self._size is not None)
            size = self._size
        while size is not None:
            data = self._pipe.read(_stride(size[0]) * size[1])
            with self._arrived:
                if len(data) < _stride(size[0]) * size[1]:
                    self._ended = True
                else:
                    self._held, self._number = (data, time.time()), self._number + 1
                self._arrived.notify_all()
                if self._ended:
                    return

    def _image(self, data: bytes) -> Image.Image:
        assert self._size is not None
        return Image.frombuffer("RGB", self._size, data, "raw", "RGB", _stride(self._size[0]), 1)


def _stride(width: int) -> int:
    """Bytes of a row: GStreamer pads RGB rows to whole 4 bytes."""
    return (width * 3 + 3) // 4 * 4
