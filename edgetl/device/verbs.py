"""The verbs of the device's command line: their options, and the one function each of them calls. Python 3.8."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List

from edgetl.errors import EdgetlError, InputError
from edgetl.monitor import Monitor

Result = Dict[str, Any]
Options = Callable[[argparse.ArgumentParser], None]
Call = Callable[[argparse.Namespace, Monitor], Result]


class Verb:
    """A verb: one line of help, its options, and what does it."""

    def __init__(self, help_line: str, options: Options, call: Call) -> None:
        self.help_line, self.options, self.call = help_line, options, call


def _probe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, help="also tell what this deployment folder holds", metavar="DIR")
    parser.add_argument("--want", help='JSON list of {"sha256","bytes"}: tell which are missing; - is stdin')
    parser.add_argument("--now", type=float, default=0.0, help="the caller's clock, to compare", metavar="SECONDS")
    _root_option(parser)


def _root_option(parser: argparse.ArgumentParser) -> None:
    # Where /proc, /sys, /etc and the vendor's commands are looked up: for a container that sees the board's below
    # another folder, and for tests.
    root = Path(os.environ.get("EDGETL_ROOT", "/"))
    parser.add_argument("--root", type=Path, default=root, help=argparse.SUPPRESS)


def _probe(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.device import store
    from edgetl.device.advice import advise, refusals
    from edgetl.device.chosen import loading
    from edgetl.device.probe import probe
    from edgetl.device.system import System

    if given.want is not None and given.state is None:
        raise InputError("--want tells what a deployment folder lacks", given.want, "give --state DIR too")
    wanted = store.read_wanted(given.want) if given.want is not None else None
    told = probe(System(given.root), given.state or Path())
    result: Result = {"probe": told, "backends": loading()}
    for name, decide in (("advice", advise), ("refusals", refusals)):
        result[name] = [found.as_json() for found in decide(told, given.now)]
    if given.state is not None:
        result["state"] = store.state(given.state)
    if wanted is not None:
        result["missing"] = {"files": store.missing(given.state, wanted)}
    return result


def _wish_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle folder")
    parser.add_argument("--backend", choices=("tensorrt", "onnxruntime"), default="tensorrt")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"))
    parser.add_argument("--profile", choices=("trt8", "trt10", "cpu"), help="of the graph")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0: its own choice", metavar="N")
    parser.add_argument("--cuda-graph", action="store_true", help="launch the engine as one recorded CUDA graph")
    parser.add_argument("--mapped", action="store_true", help="buffers that CPU and GPU share: nothing is copied")


def _wish(given: argparse.Namespace) -> Any:
    from edgetl.device.chosen import Wish

    fields = ("backend", "precision", "profile", "threads", "cuda_graph", "mapped")
    return Wish(**{name: getattr(given, name) for name in fields})


def _build_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle folder")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), required=True)
    parser.add_argument("--backend", choices=("tensorrt", "onnxruntime"), default="tensorrt")
    parser.add_argument("--profile", choices=("trt8", "trt10", "cpu"), help="of the graph, for onnxruntime")
    parser.add_argument("--batch", default="1,1,8", metavar="MIN,OPT,MAX")
    parser.add_argument("--workspace", type=int, default=0, metavar="MIB", help="0: TensorRT's own limit")
    parser.add_argument("--level", type=int, default=-1, metavar="0-5", help="optimisation level; -1: TensorRT's own")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="engines by key that bundles share")
    parser.add_argument("--with", dest="builder", default="tensorrt", choices=("tensorrt", "tensorrt-rtx"))
    parser.add_argument("--allow-unmet", action="store_true", help="build a graph that missed its contract")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)  # one try of the ladder
    _root_option(parser)


def _build(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.bundle import Bundle
    from edgetl.device.build import Wanted, build_here, build_on_device, open_graph
    from edgetl.device.chosen import ONNXRUNTIME, Wish
    from edgetl.device.ladder import Attempt
    from edgetl.device.system import System
    from edgetl.engine import load
    from edgetl.spec import BatchProfile, Precision
    from edgetl.target import parse_version

    if given.backend == ONNXRUNTIME:
        return open_graph(Bundle.open(given.bundle), Wish(ONNXRUNTIME, given.precision, given.profile))
    wanted = Wanted(
        bundle=given.bundle,
        precision=Precision(given.precision),
        batch=BatchProfile.parse(given.batch),
        attempt=Attempt(given.workspace, given.level),
        engines=given.engines,
        flavour=given.builder.replace("-", "_"),
        allow_unmet=given.allow_unmet,
    )
    if given.in_process:
        return build_here(wanted, monitor)
    tools = load(wanted.flavour)  # its absence is told before any memory is looked at
    levels = parse_version(tools.version) >= (8, 6) or tools.line.ahead_of_time
    return build_on_device(wanted, levels, System(given.root), monitor)


def _verify(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.bundle import Bundle
    from edgetl.device.chosen import choose_all
    from edgetl.device.verify import verify

    bundle = Bundle.open(given.bundle)
    return verify(bundle, choose_all(bundle, _wish(given)), monitor)


def _bench_options(parser: argparse.ArgumentParser) -> None:
    _wish_options(parser)
    parser.add_argument("--batch", default="1", metavar="N,...", help="batch sizes to time")
    parser.add_argument("--seconds", type=float, default=5.0, help="timed for each backend, at least")
    parser.add_argument("--warmup", type=int, help="runs before timing; default: until steady")
    parser.add_argument("--data", metavar="DATA", help="accuracy on these images too; default: only time")
    parser.add_argument("--reference", type=Path, metavar="NPZ", help="PyTorch's logits of DATA, by digest")
    parser.add_argument("--idle-seconds", type=float, default=2.0, help="of the power meter, before")
    parser.add_argument("--power-seconds", type=float, default=3.0, help="of the power meter, for each backend")
    parser.add_argument("--modes", metavar="all|ID,...", help="in each of these power modes (sudo), then back")
    parser.add_argument("--no-peaks", action="store_true", help="do not measure memory")
    _root_option(parser)


def _bench(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.bundle import Bundle
    from edgetl.device.accuracy import read_images, read_reference
    from edgetl.device.bench import Effects, bench, images_for
    from edgetl.device.chosen import choose_all
    from edgetl.device.modes import sweep
    from edgetl.device.system import System
    from edgetl.measure.latency import Effort

    bundle, system = Bundle.open(given.bundle), System(given.root)
    chosen = choose_all(bundle, _wish(given))
    root, samples, split = read_images(bundle, given.data)
    images = images_for(bundle, samples, root, split)
    reference = read_reference(given.reference)
    effort = Effort.of_bench(given.seconds, given.warmup)
    meter = (given.idle_seconds, given.power_seconds)
    effects = Effects(_batches(given.batch), effort, *meter, threads=given.threads, peaks=not given.no_peaks)

    def once() -> Result:
        return bench(chosen, images, effects, reference, system, monitor)

    if given.modes is None:
        return once()
    return {"modes": sweep(system, given.modes, lambda mode: once(), monitor)}


def _batches(text: str) -> List[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError("--batch wants sizes above zero", text, "for example --batch 1,8")
    return [int(part) for part in dict.fromkeys(parts)]


def _answer_options(parser: argparse.ArgumentParser) -> None:
    _wish_options(parser)
    parser.add_argument("--top", type=int, default=1, help="classes listed for each image", metavar="K")
    parser.add_argument("--min-precision", type=float, metavar="P", help="abstain where this precision is not promised")


def _classify_options(parser: argparse.ArgumentParser) -> None:
    _answer_options(parser)
    parser.add_argument("images", nargs="+", type=Path)


def _classify(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.images import read_bytes, to_input

    encoded = [(path, read_bytes(path)) for path in given.images]  # a wrong path fails before an engine is loaded
    answering = _answering(given)
    try:
        spec = answering.preprocess
        found = [dict({"image": str(p)}, **answering.answer(to_input(data, spec, p))) for p, data in encoded]
    finally:
        answering.close()
    return {"predictions": found, "temperature": answering.temperature, "threshold": answering.threshold}


def _answering(given: argparse.Namespace) -> Any:
    from edgetl.bundle import Bundle
    from edgetl.device.chosen import choose
    from edgetl.device.stream import Answering

    if given.top < 1:
        raise InputError("--top lists one class at least", given.top, "for example --top 5")
    return Answering(choose(Bundle.open(given.bundle), _wish(given)), given.top, given.min_precision)


def _run_options(parser: argparse.ArgumentParser) -> None:
    _answer_options(parser)
    parser.add_argument("--source", required=True, metavar="DIR|/dev/videoN|rtsp://...|gst:PIPELINE")
    parser.add_argument("--follow", action="store_true", help="DIR: go on with images that come later")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="end after N images; 0: with the source")


def _run(given: argparse.Namespace, monitor: Monitor) -> Result:
    """Lines as they come; the answer is the totals. SIGTERM and Ctrl-C end it well: that is how a service stops."""
    from itertools import islice

    from edgetl.device.signals import Terminated
    from edgetl.device.sources import open_source
    from edgetl.device.stream import Totals, stream

    totals, ended = Totals(), "source ended"
    answering = _answering(given)
    try:
        frames = open_source(given.source, given.follow)
        wanted = islice(frames, given.limit) if given.limit else frames
        stream(answering, wanted, _emit, totals, monitor)
    except (Terminated, KeyboardInterrupt):
        ended = "stopped"
    finally:
        answering.close()
    if not totals.images and totals.errors:
        raise EdgetlError("no image of the source could be read", "%d errors" % totals.errors, "see its lines")
    about = {"temperature": answering.temperature, "threshold": answering.threshold}
    return dict(asdict(totals), ended=ended, **about)


def _emit(line: Result) -> None:
    print(json.dumps(line, ensure_ascii=False, allow_nan=False), flush=True)


def _root_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", type=Path, metavar="DIR", help="the deployment folder")


def _receive(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.device.receive import receive

    return receive(given.state, sys.stdin.buffer)


def _install_options(parser: argparse.ArgumentParser) -> None:
    _root_argument(parser)
    parser.add_argument("--manifest", required=True, metavar="SHA256", help="of the release, as it was pushed")
    parser.add_argument("--images", metavar="SHA256", help="of the list of images to prove with")


def _install(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.device.release import install, place_images

    made = install(given.state, given.manifest)
    if given.images is not None:
        made["images"] = str(place_images(given.state, given.images))
    return made


def _activate_options(parser: argparse.ArgumentParser) -> None:
    _root_argument(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--release", metavar="NAME")
    which.add_argument("--rollback", action="store_true", help="the release that served before")
    parser.add_argument("--serve", default="{}", metavar="JSON", help="what serves: precision, backend, profile")
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="releases kept")


def _activate(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.device.release import activate, rollback

    if given.rollback:
        return rollback(given.state, given.keep)
    return activate(given.state, given.release, json.loads(given.serve), given.keep)


def _selftest_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=1.0, help="timed for each backend, at least")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the built engines there")
    _root_option(parser)


def _selftest(given: argparse.Namespace, monitor: Monitor) -> Result:
    from edgetl.device.selftest import selftest
    from edgetl.device.system import System

    return selftest(System(given.root), given.seconds, given.keep, monitor)


VERBS: Dict[str, Verb] = {
    "probe": Verb("what this device is, and what it holds", _probe_options, _probe),
    "build": Verb("an engine of a bundle's graph, on this device", _build_options, _build),
    "bench": Verb("latency, energy and accuracy, with the conditions they were measured under", _bench_options, _bench),
    "classify": Verb("name the class of image files", _classify_options, _classify),
    "verify": Verb("the golden cases: pixels, backend against graph, graph against PyTorch", _wish_options, _verify),
    "run": Verb("classify a stream, one JSON line an image", _run_options, _run),
    "receive": Verb("files by content, from stdin", _root_argument, _receive),
    "install": Verb("a release of files that were received", _install_options, _install),
    "activate": Verb("switch to a release, and sweep", _activate_options, _activate),
    "selftest": Verb(
        "all of it on tiny graphs that travel with the app: send its JSON back", _selftest_options, _selftest
    ),
}

JOBS = ("build", "bench", "verify", "selftest")  # what may run apart from the connection that asked for it
