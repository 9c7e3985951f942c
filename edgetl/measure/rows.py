"""A bench row: the exact object of cli.md, written and read strictly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from edgetl.errors import InputError
from edgetl.runtime import EVIDENCE
from edgetl.stats import Summary

Ends = Dict[str, Optional[Sequence[float]]]  # [lo, hi] by percentile

SCHEMA = 1
STATUS = ("ok", "failed")


@dataclass(frozen=True)
class Row:
    """One candidate at one batch size. None is "not measured", never zero.

    accuracy 0-1; drop_pp in percentage points against the reference, positive is worse; agreement 0-1;
    latency_ms array to array, end_to_end_ms from the encoded bytes, device_ms on the GPU: each of one
    batch, as stats.percentiles gives it; throughput_ips images a second; evidence as runtime.EVIDENCE.

    Beside the contract's keys, which a file of an older edgetl may lack: macro averages over classes and ece 0-1,
    p_mcnemar of the paired difference; *_ci_ms: 95 % interval of each percentile, {"p50": [lo, hi] or None, ...};
    end_to_end_parts_ms: medians of {"decode", "resize", "run"}; ratio_p50: this row's latency p50 over that of the row
    `ratio_to`, as [ratio, lo, hi]; noise: what went on meanwhile (measure.noise), {"noisy": bool, "why": [...], ...};
    throughput_by_streams: {"4": {"throughput_ips", "p50_ms", "p99_ms", "n"} or None, ...} by concurrent callers.
    """

    id: str
    environment: str
    backend: str
    provider: str
    profile: Optional[str]
    precision: str
    graph_sha256: Optional[str]
    engine_key: Optional[str]
    status: str
    error: Optional[str]
    split: str
    batch: int
    n_images: int
    accuracy: Optional[float] = None
    accuracy_ci: Optional[Tuple[float, float]] = None
    drop_pp: Optional[float] = None
    drop_ci_pp: Optional[Tuple[float, float]] = None
    agreement: Optional[float] = None
    flips: Optional[int] = None
    accuracy_evidence: Optional[str] = None
    latency_evidence: Optional[str] = None
    latency_ms: Optional[Summary] = None
    device_ms: Optional[Summary] = None
    end_to_end_ms: Optional[Summary] = None
    throughput_ips: Optional[float] = None
    size_bytes: Optional[int] = None
    peak_rss_mb: Optional[float] = None
    energy_mj: Optional[float] = None
    macro_precision: Optional[float] = None
    macro_recall: Optional[float] = None
    macro_f1: Optional[float] = None
    ece: Optional[float] = None
    p_mcnemar: Optional[float] = None
    latency_ci_ms: Optional[Ends] = None
    device_ci_ms: Optional[Ends] = None
    end_to_end_ci_ms: Optional[Ends] = None
    end_to_end_parts_ms: Optional[Dict[str, float]] = None
    ratio_p50: Optional[Tuple[float, float, float]] = None
    ratio_to: Optional[str] = None
    noise: Optional[Dict[str, Any]] = None
    throughput_by_streams: Optional[Dict[str, Any]] = None

    def __post_init__(self) -> None:
        if self.status not in STATUS or (self.status == "failed") != (self.error is not None):
            raise InputError(
                "a row is ok, or failed with its error",
                "%s, %s" % (self.status, self.error),
                "mend the row, or leave it out",
            )
        for evidence in (self.accuracy_evidence, self.latency_evidence):
            if evidence is not None and evidence not in EVIDENCE:
                raise InputError("unknown evidence in a row", evidence, "one of " + ", ".join(EVIDENCE))

    def to_json(self) -> Dict[str, Any]:
        """The object of cli.md."""
        out = asdict(self)
        for key in (*PAIRS, "ratio_p50"):
            out[key] = None if out[key] is None else list(out[key])
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Read what `to_json` wrote. Raises InputError naming the key that is missing, unknown or of another type."""
        if not isinstance(data, Mapping):
            raise InputError("a row is not an object", data, "mend the row, or leave it out")
        odd = sorted((set(data) - set(FIELDS) - set(ADDED)) | (set(FIELDS) - set(data)))
        if odd:
            raise InputError("a row lacks a key or has one too many", odd[0], "rows are written by `edgetl bench`")
        for key, value in data.items():
            if not _fits(key, value):
                raise InputError(
                    "a row's value has another type",
                    "%s = %r, want %s" % (key, value, _kind(key)),
                    "mend the row, or leave it out",
                )
        pairs = {key: tuple(data[key]) for key in (*PAIRS, "ratio_p50") if data.get(key) is not None}
        return cls(**dict(data, **pairs))


_NAMES = tuple(f.name for f in fields(Row))
FIELDS = _NAMES[: _NAMES.index("energy_mj") + 1]  # of cli.md, in its order
ADDED = _NAMES[len(FIELDS) :]  # what a row of an older edgetl may lack
SUMMARIES = ("latency_ms", "device_ms", "end_to_end_ms")
INTERVALS = ("latency_ci_ms", "device_ci_ms", "end_to_end_ci_ms")
PAIRS = ("accuracy_ci", "drop_ci_pp")
PARTS = ("decode", "resize", "run")
_COUNTS = ("batch", "n_images", "flips", "size_bytes")
_NUMBERS = (
    *("accuracy", "drop_pp", "agreement", "throughput_ips", "peak_rss_mb", "energy_mj"),
    *("macro_precision", "macro_recall", "macro_f1", "ece", "p_mcnemar"),
)
_REQUIRED = ("id", "environment", "backend", "provider", "precision", "status", "split", "batch", "n_images")
NUMERIC = _COUNTS + _NUMBERS
SUMMARY_KEYS = ("p50", "p90", "p95", "p99", "mean", "n")
STREAM_KEYS = ("throughput_ips", "p50_ms", "p99_ms", "n")


def rows_of(result: Mapping[str, Any], where: object) -> List[Row]:
    """The rows of a bench's JSON object. Raises InputError naming `where` it came from."""
    if result.get("schema") != SCHEMA or not isinstance(result.get("rows"), list):
        raise InputError("not the JSON of `edgetl bench`", where, "write one with `edgetl bench BUNDLE --out FILE`")
    return [Row.from_json(row) for row in result["rows"]]


def _kind(key: str) -> str:
    return next((kind for keys, kind, _ in _TYPES if key in keys), "a text")


def _fits(key: str, value: object) -> bool:
    if value is None:
        return key not in _REQUIRED
    return next((fits(value) for keys, _, fits in _TYPES if key in keys), isinstance(value, str))


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(count: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) == count and all(map(_number, value))


def _object(keys: Sequence[str], fits: Callable[[object], bool]) -> Callable[[object], bool]:
    """An object of exactly these keys, whose values fit or are null."""
    return lambda value: (
        isinstance(value, dict) and set(value) == set(keys) and all(v is None or fits(v) for v in value.values())
    )


def _noise(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("noisy"), bool) and isinstance(value.get("why"), list)


def _streams(value: object) -> bool:
    fits = _object(STREAM_KEYS, _number)
    return isinstance(value, dict) and all(str(key).isdigit() and (v is None or fits(v)) for key, v in value.items())


# (keys, what a value is called, whether it is one); all other keys hold texts
_TYPES: Tuple[Tuple[Tuple[str, ...], str, Callable[[object], bool]], ...] = (
    (_COUNTS, "a whole number", _count),
    (_NUMBERS, "a number", _number),
    (PAIRS, "[lo, hi]", _numbers(2)),
    (("ratio_p50",), "[ratio, lo, hi]", _numbers(3)),
    (SUMMARIES, "{%s}" % ", ".join(SUMMARY_KEYS), _object(SUMMARY_KEYS, _number)),
    (INTERVALS, "{%s} of [lo, hi]" % ", ".join(SUMMARY_KEYS[:4]), _object(SUMMARY_KEYS[:4], _numbers(2))),
    (("end_to_end_parts_ms",), "{%s}" % ", ".join(PARTS), _object(PARTS, _number)),
    (("noise",), '{"noisy", "why", ...}', _noise),
    (("throughput_by_streams",), '{"1": {%s}, ...}' % ", ".join(STREAM_KEYS), _streams),
)
