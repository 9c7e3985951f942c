"""Image folders, CSV manifests, seeded splits, decode, to_input: the only preprocessing in the project."""

from edgetl.images.dataset import (
    SPLITS,
    Dataset,
    ReadOptions,
    Sample,
    draw_balanced,
    rank_of,
    split_digest,
    with_calibration,
)
from edgetl.images.decode import EXTENSIONS, decode, fitted, placement, read_bytes, resized, to_batch, to_input
from edgetl.images.read import read_data
from edgetl.images.stream import Batch, cores, loaded_ahead, prefetched, read_sample, stream

__all__ = [
    "EXTENSIONS",
    "SPLITS",
    "Batch",
    "Dataset",
    "ReadOptions",
    "Sample",
    "cores",
    "decode",
    "draw_balanced",
    "fitted",
    "loaded_ahead",
    "placement",
    "prefetched",
    "rank_of",
    "read_bytes",
    "read_data",
    "read_sample",
    "resized",
    "split_digest",
    "stream",
    "to_batch",
    "to_input",
    "with_calibration",
]
