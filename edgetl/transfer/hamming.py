"""Neighbours in Hamming distance among 64-bit codes, without comparing all with all.

Multi-index hashing (Norouzi, Punjani, Fleet 2012, "Fast Search in Hamming Space with Multi-Index Hashing", section
3): codes are cut into m bands; two codes within r bits agree in one band at least up to floor(r / m) bits. So each
band's values are sorted once and looked up with every pattern of so few bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

BITS = 64
BANDS = 5
FIRST_LOOK = 16  # of a crowded bucket, before all of it is looked at
CHUNK = 1 << 20  # comparisons in memory at a time; so few are made at once, without tables

Codes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def near(queries: Codes, codes: Codes, radius: int, open_: npt.NDArray[np.bool_]) -> Iterator[tuple[Rows, Rows]]:
    """(query rows, code rows) of pairs within `radius` bits, in chunks; a pair may come more than once.

    The caller clears `open_[query]` (bool, one a query) once it needs no more pairs of a query. Crowded places are
    looked at a little first, so that where everything is alike, most queries are served before it gets expensive.
    """
    if len(queries) * len(codes) <= CHUNK:
        yield from _all_with_all(queries, codes, radius, open_)
        return
    tables = [_Band(codes, band) for band in range(BANDS)]
    for limit in (FIRST_LOOK, len(codes)):
        for table in tables:
            for pattern in _patterns(table.width, radius // BANDS):
                rows = np.flatnonzero(open_)
                if not len(rows):
                    return
                begin, count = table.bucket(queries[rows], pattern)
                count = np.minimum(count, limit) if limit == FIRST_LOOK else np.where(count > FIRST_LOOK, count, 0)
                yield from _compared(queries, codes, table.order, rows, begin, count, radius)


def _all_with_all(
    queries: Codes, codes: Codes, radius: int, open_: npt.NDArray[np.bool_]
) -> Iterator[tuple[Rows, Rows]]:
    """The same where each pair can be looked at: of every query FIRST_LOOK pairs, then all."""
    within = np.bitwise_count(queries[:, None] ^ codes[None]) <= radius
    nth = np.cumsum(within, axis=1, dtype=np.int32)
    for seen, most in ((0, FIRST_LOOK), (FIRST_LOOK, len(codes))):
        rows = np.flatnonzero(open_)
        query, code = np.nonzero(within[rows] & (nth[rows] > seen) & (nth[rows] <= most))
        yield rows[query], code


class _Band:
    """Some neighbouring bits of all codes, sorted."""

    def __init__(self, codes: Codes, band: int) -> None:
        self.low = band * BITS // BANDS
        self.width = (band + 1) * BITS // BANDS - self.low
        values = self._values(codes)
        self.order = np.argsort(values, kind="stable")
        # Where each value's run begins: a band is 13 bits at most.
        self._begin = np.searchsorted(values[self.order], np.arange((1 << self.width) + 1))

    def _values(self, codes: Codes) -> Rows:
        return ((codes >> np.uint64(self.low)) & np.uint64((1 << self.width) - 1)).astype(np.int64)

    def bucket(self, queries: Codes, pattern: int) -> tuple[Rows, Rows]:
        """Begin and length, in `order`, of the codes whose band is the query's with the bits of `pattern` turned."""
        values = self._values(queries) ^ pattern
        return self._begin[values], self._begin[values + 1] - self._begin[values]


def _patterns(width: int, bits: int) -> list[int]:
    """Every pattern of at most `bits` ones in `width`, fewest first."""
    return [sum(1 << place for place in places) for n in range(bits + 1) for places in combinations(range(width), n)]


def _compared(
    queries: Codes, codes: Codes, order: Rows, rows: Rows, begin: Rows, count: Rows, radius: int
) -> Iterator[tuple[Rows, Rows]]:
    ends = np.cumsum(count)
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK, side="right")))
        lengths = count[start:stop]
        query = np.repeat(rows[start:stop], lengths)
        offset = np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        code = order[np.repeat(begin[start:stop], lengths) + offset]
        within = np.bitwise_count(queries[query] ^ codes[code]) <= radius
        if within.any():
            yield query[within], code[within]
        start = stop
