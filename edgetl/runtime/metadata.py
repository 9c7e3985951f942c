"""What an ONNX file says of itself (its metadata_props), read without loading the graph. Python 3.8, no onnx."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Dict, Iterator, Optional, Tuple

from edgetl.errors import BackendError

_METADATA = 14  # ModelProto.metadata_props, each a StringStringEntryProto: 1 is its key, 2 its value
_FIXED = {1: 8, 5: 4}  # bytes of protobuf's wire types fixed64 and fixed32


def metadata(graph: Path) -> Dict[str, str]:
    """The metadata_props of an ONNX file; weights are skipped, not read. Raises BackendError for anything else."""
    out: Dict[str, str] = {}
    try:
        with graph.open("rb") as stream:
            for entry in _entries(stream, graph.stat().st_size):
                out[entry.get(1, "")] = entry.get(2, "")
    except FileNotFoundError:
        raise BackendError("no such graph", graph) from None
    except (OSError, ValueError) as error:
        raise BackendError("not an ONNX file", "%s (%s)" % (graph, error)) from error
    return out


def _entries(stream: BinaryIO, size: int) -> Iterator[Dict[int, str]]:
    """Each metadata_props entry: field number -> text."""
    while stream.tell() < size:
        number, length = _field(stream, size)
        if length is None:
            continue
        if number != _METADATA:
            stream.seek(length, 1)
            continue
        end, entry = stream.tell() + length, {}
        while stream.tell() < end:
            inner, count = _field(stream, end)
            if count is not None:
                entry[inner] = stream.read(count).decode("utf-8")
        yield entry


def _field(stream: BinaryIO, end: int) -> Tuple[int, Optional[int]]:
    """(field number, bytes that follow); None for a number, which is skipped. Raises ValueError."""
    tag = _varint(stream)
    number, kind = tag >> 3, tag & 7
    length: Optional[int] = None
    if kind == 0:
        _varint(stream)
    elif kind in _FIXED:
        stream.seek(_FIXED[kind], 1)
    elif kind == 2:
        length = _varint(stream)
    else:
        raise ValueError("wire type %d at byte %d" % (kind, stream.tell()))
    if stream.tell() + (length or 0) > end:
        raise ValueError("it ends within field %d" % number)
    return number, length


def _varint(stream: BinaryIO) -> int:
    out = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        out |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return out
    raise ValueError("a number of more than ten bytes")
