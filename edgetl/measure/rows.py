"""A bench row: the exact object of cli.md, written and read strictly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edgetl.errors import InputError
from edgetl.runtime import EVIDENCE
from edgetl.stats import Summary

SCHEMA = 1
STATUS = ("ok", "failed")


@dataclass(frozen=True)
class Row:
    """One candidate at one batch size. None is "not measured", never zero.

    accuracy 0-1; drop_pp in percentage points against the reference, positive is worse; agreement 0-1;
    latency_ms array to array, end_to_end_ms from the encoded bytes, device_ms on the GPU: each of one
    batch, as stats.percentiles gives it; throughput_ips images a second; evidence as runtime.EVIDENCE.
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

    def __post_init__(self) -> None:
        if self.status not in STATUS or (self.status == "failed") != (self.error is not None):
            raise InputError("a row is ok, or failed with its error", "%s, %s" % (self.status, self.error))
        for evidence in (self.accuracy_evidence, self.latency_evidence):
            if evidence is not None and evidence not in EVIDENCE:
                raise InputError("unknown evidence in a row", evidence, "one of " + ", ".join(EVIDENCE))

    def to_json(self) -> Dict[str, Any]:
        """The object of cli.md."""
        out = asdict(self)
        for key in ("accuracy_ci", "drop_ci_pp"):
            out[key] = None if out[key] is None else list(out[key])
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Read what `to_json` wrote. Raises InputError naming the key that is missing, unknown or of another type."""
        if not isinstance(data, Mapping):
            raise InputError("a row is not an object", data)
        odd = sorted(set(data) ^ set(FIELDS))
        if odd:
            raise InputError("a row lacks a key or has one too many", odd[0], "rows are written by `edgetl bench`")
        for key, value in data.items():
            if not _fits(key, value):
                raise InputError("a row's value has another type", "%s = %r, want %s" % (key, value, _kind(key)))
        pairs = {key: tuple(data[key]) for key in ("accuracy_ci", "drop_ci_pp") if data[key] is not None}
        return cls(**dict(data, **pairs))


FIELDS = tuple(f.name for f in fields(Row))
SUMMARIES = ("latency_ms", "device_ms", "end_to_end_ms")
PAIRS = ("accuracy_ci", "drop_ci_pp")
_COUNTS = ("batch", "n_images", "flips", "size_bytes")
_NUMBERS = ("accuracy", "drop_pp", "agreement", "throughput_ips", "peak_rss_mb", "energy_mj")
_REQUIRED = ("id", "environment", "backend", "provider", "precision", "status", "split", "batch", "n_images")
NUMERIC = _COUNTS + _NUMBERS
SUMMARY_KEYS = ("p50", "p90", "p95", "p99", "mean", "n")


def rows_of(result: Mapping[str, Any], where: object) -> List[Row]:
    """The rows of a bench's JSON object. Raises InputError naming `where` it came from."""
    if result.get("schema") != SCHEMA or not isinstance(result.get("rows"), list):
        raise InputError("not the JSON of `edgetl bench`", where, "write one with `edgetl bench BUNDLE --out FILE`")
    return [Row.from_json(row) for row in result["rows"]]


def _kind(key: str) -> str:
    if key in _COUNTS:
        return "a whole number"
    if key in _NUMBERS:
        return "a number"
    if key in PAIRS:
        return "[lo, hi]"
    return "{%s}" % ", ".join(SUMMARY_KEYS) if key in SUMMARIES else "a text"


def _fits(key: str, value: object) -> bool:
    if value is None:
        return key not in _REQUIRED
    if key in _COUNTS:
        return isinstance(value, int) and not isinstance(value, bool)
    if key in _NUMBERS:
        return _number(value)
    if key in PAIRS:
        return isinstance(value, (list, tuple)) and len(value) == 2 and all(_number(v) for v in value)
    if key in SUMMARIES:
        return (
            isinstance(value, dict)
            and set(value) == set(SUMMARY_KEYS)
            and all(v is None or _number(v) for v in value.values())
        )
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
