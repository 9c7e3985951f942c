"""The protocol of a bench: which figures, measured how, compared with what. It is handed its candidates."""

from edgetl.bench.candidate import Candidate
from edgetl.bench.compare import Change, Compared, changes
from edgetl.bench.fail_if import Condition, check_all, parse
from edgetl.bench.protocol import BenchData, BenchOptions, Outcome, bench
from edgetl.measure.evidence import latency_evidence

__all__ = [
    "BenchData",
    "BenchOptions",
    "Candidate",
    "Change",
    "Compared",
    "Condition",
    "Outcome",
    "bench",
    "changes",
    "check_all",
    "latency_evidence",
    "parse",
]
