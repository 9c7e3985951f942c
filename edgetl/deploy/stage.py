"""The stage behind `edgetl deploy`: probe, push what is missing, build, prove, measure, switch.

The release that served before serves until the last step, and each step can be done again: whatever breaks, the
same command finishes the work. Every figure is the device's own.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.bundle import Bundle
from edgetl.deploy import app
from edgetl.deploy.cargo import Cargo, frames, pack, volume
from edgetl.deploy.emit.served import check_name, plain_name
from edgetl.deploy.proof import Proof, proof
from edgetl.deploy.remote import Answer, Device
from edgetl.deploy.ssh import Connection
from edgetl.deploy.steps import FAILED, PLANNED, SKIPPED, Plan, Steps, fastest, plan
from edgetl.errors import BackendError, ContractUnmet, EdgetlError, InputError
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import BatchProfile, Precision, Profile

PROVE = ("test", "val", "golden", "none")
TENSORRT, ONNXRUNTIME = "tensorrt", "onnxruntime"
_ALWAYS = ("Python", "Disk")  # refusals of the device that matter whatever runs the graph
_SPARE_MB = 50  # logs, timing caches, a manifest


@dataclass(frozen=True)
class DeployOptions:
    """Options of `edgetl deploy` (cli.md). `backend`: what runs the graph there; nothing is swapped for it."""

    precision: Precision | None = None
    backend: str = TENSORRT
    name: str | None = None
    port: int | None = None
    timeout_s: float = 15.0
    prove: str = "test"
    data: str | None = None
    batch: str = "1,1,8"
    seconds: float = 2.0
    keep: int = 3
    dry_run: bool = False
    restart: str | None = None
    modes: str | None = None
    allow_unmet: bool = False
    ssh: tuple[str, ...] = ()  # more words for ssh, before ours

    def __post_init__(self) -> None:
        if self.prove not in PROVE:
            raise InputError("unknown --prove", self.prove, "use one of " + ", ".join(PROVE))
        if self.backend not in (TENSORRT, ONNXRUNTIME):
            raise InputError("unknown --backend", self.backend, f"use {TENSORRT} or {ONNXRUNTIME}")
        if self.keep < 1:
            raise InputError("--keep keeps one release at least", self.keep, "for example --keep 2")
        check_name(self.name)
        BatchProfile.parse(self.batch)


def deploy(path: Path, host: str, options: DeployOptions, monitor: Monitor = SILENT) -> Answer:
    """cli.md's object of `deploy`; the rows are kept in the bundle too.

    Raises ContractUnmet (with the object) where no variant keeps its contract on the device, and what the bundle,
    the connection and the device raise.
    """
    bundle = Bundle.open(path)
    name = options.name or plain_name(bundle.path.name)
    with Connection(host, options.port, options.timeout_s, options.ssh) as connection:
        device = Device(connection, name, app.build_app(), monitor, leaves=not options.dry_run)
        return _Run(bundle, device, options, monitor).carry_out()


class _Run:
    """One deploy on one device."""

    def __init__(self, bundle: Bundle, device: Device, options: DeployOptions, monitor: Monitor) -> None:
        self.bundle, self.device, self.options, self.monitor = bundle, device, options, monitor
        self.steps = Steps()
        self.probe: Answer = {}
        self.modes: list[Answer] | None = None
        self._left_out: dict[str, str] = {}  # precision -> why it was not built, not proven or not measured
        self._missed = False  # an INT8 variant lost more on the device than its contract allows

    def carry_out(self) -> Answer:
        """All steps, or with --dry-run the plan of them."""
        cargos = self._cargos()
        told = self._probe(cargos)
        cargo = self._fitting(cargos, told)
        todo = plan(told["state"], told["missing"]["files"], cargo, self._asked)
        self._room(todo)
        if self.options.dry_run:
            return self._planned(todo)
        if not todo.fresh:
            return self._measured_again(cargo, told["state"]["serve"])
        with self.device.locked():
            return self._install(cargo, todo)

    @property
    def _asked(self) -> str | None:
        return str(self.options.precision) if self.options.precision else None

    def _cargos(self) -> dict[Profile, Cargo]:
        """A cargo for each profile that the device might read: one call then tells what is missing of all."""
        wanted = (Profile.CPU,) if self.options.backend == ONNXRUNTIME else (Profile.TRT10, Profile.TRT8)
        out, errors = {}, []
        for profile in wanted:
            try:
                out[profile] = pack(self.bundle, (profile,), self.options.precision, self.options.allow_unmet)
            except InputError as error:
                errors.append(error)
        if not out:
            raise errors[0]
        return out

    def _probe(self, cargos: dict[Profile, Cargo]) -> Answer:
        pieces = {piece.sha256: piece.wanted() for cargo in cargos.values() for piece in cargo.pieces}
        with self.steps.step("probe") as step:
            body = json.dumps(list(pieces.values())).encode()
            told = self.device.probe("--state", self.device.root, "--want", "-", body=body)
            step.bytes = self.device.moved + len(body)
        self.probe = told["probe"]
        for found in told["refusals"]:
            if self.options.backend == TENSORRT or found["name"] in _ALWAYS:
                raise BackendError(f"this device will not do: {found['name']}", found["value"], found["do"])
        return told

    def _room(self, todo: Plan) -> None:
        """Whether what comes fits on the device's disk; an engine is taken to be as large as its graph."""
        free = self.probe["disk"]["free_mb"]
        wanted = todo.bytes * (2 if self.options.backend == TENSORRT else 1) // 1_000_000 + _SPARE_MB
        if free is not None and free < wanted:
            said = f"{free} MB free, about {wanted} MB wanted"
            raise BackendError(
                "the device has too little room on its disk", said, "free some, or --keep fewer releases"
            )

    def _fitting(self, cargos: dict[Profile, Cargo], told: Answer) -> Cargo:
        backend = told["backends"][self.options.backend]
        if not backend["ok"]:
            error = backend["error"]
            raise BackendError(f"{self.options.backend} does not load on the device", error["value"] or error["what"])
        profile = Profile.CPU
        if self.options.backend == TENSORRT:
            profile = Profile(told["probe"]["tensorrt"]["profile"])
        if profile not in cargos:
            pack(self.bundle, (profile,), self.options.precision, self.options.allow_unmet)  # says what is missing
        return cargos[profile]

    def _planned(self, todo: Plan) -> Answer:
        if not todo.fresh:
            self.steps.note("bench", PLANNED)
        else:
            self.steps.note("push", PLANNED, todo.bytes)
            for precision in todo.variants:
                if self.options.backend == TENSORRT:
                    self.steps.note(f"build {precision}", PLANNED)
                self.steps.note(f"verify {precision}", PLANNED)
            self.steps.note("bench", PLANNED)
            self.steps.note("switch", PLANNED)
        return self._answer(None, [])

    def _install(self, cargo: Cargo, todo: Plan) -> Answer:
        shown = None
        if self.options.prove in ("test", "val"):
            shown = proof(self.bundle, self.options.prove, self.options.data, monitor=self.monitor)
        self._push(cargo, todo, shown)
        with self.steps.step("install"):
            words = ["--manifest", cargo.manifest.sha256]
            words += ["--images", shown.listing.sha256] if shown else []
            made = self.device.call("install", self.device.root, *words)
        place = f"{self.device.root}/releases/{made['release']}"
        proven = {precision: self._variant(place, precision) for precision in todo.variants}
        if not any(proven.values()):
            raise self._refused([], shown)
        rows = self._bench(place, None, shown, made.get("images"))
        for row in rows:
            proven[row["precision"]] = proven.get(row["precision"], False) and self._kept(cargo, row)
        best = fastest(rows, proven)
        if best is None:
            raise self._refused(rows, shown)
        serve = {key: best[key] for key in ("precision", "backend", "profile", "engine_key", "graph_sha256")}
        with self.steps.step("switch"):
            text = json.dumps(serve)
            words = ["--release", made["release"], "--serve", text, "--keep", str(self.options.keep)]
            self.device.call("activate", self.device.root, *words)
        self._sweep(place, best["precision"])
        self._restart()
        return self._answer({"precision": best["precision"], "key": best["engine_key"]}, rows)

    def _push(self, cargo: Cargo, todo: Plan, shown: Proof | None) -> None:
        missing = list(todo.missing)
        pieces = list(cargo.pieces)
        if shown is not None:
            pieces += shown.pieces
            body = json.dumps([piece.wanted() for piece in shown.pieces]).encode()
            told = self.device.probe("--state", self.device.root, "--want", "-", body=body)
            missing += told["missing"]["files"]
        if not missing:
            self.steps.note("push", SKIPPED)
            return
        with self.steps.step("push") as step:
            step.bytes = volume(missing)
            self.device.call("receive", self.device.root, body=frames(pieces, missing, self.monitor))
            self.device.moved += step.bytes

    def _variant(self, place: str, precision: str) -> bool:
        """Build (where an engine is wanted) and verify one variant; a failure is its own, the others go on."""
        words = ["--precision", precision]
        try:
            if self.options.backend == TENSORRT:
                with self.steps.step(f"build {precision}"):
                    more = ["--batch", self.options.batch, "--engines", f"{self.device.root}/engines"]
                    more += ["--allow-unmet"] if self.options.allow_unmet else []
                    self.device.call("build", place, *words, *more, job=True)
            with self.steps.step(f"verify {precision}"):
                self.device.call("verify", place, "--backend", self.options.backend, *words, job=True)
        except EdgetlError as error:
            if self.steps.all[-1].status != FAILED or self._asked == precision:
                raise
            self.monitor.warn(f"{precision} is left out: {error}")
            self._left_out[precision] = str(error)
            return False
        return True

    def _bench(self, place: str, precision: str | None, shown: Proof | None, table: str | None) -> list[Any]:
        words = self._timing(precision)
        if shown is not None and table is not None:
            words += ["--data", table, "--reference", f"{self.device.root}/store/{shown.reference.sha256}"]
        with self.steps.step("bench"):
            result = self.device.call("bench", place, *words, job=True)
        rows = [self._named(row, shown) for row in result["rows"]]
        keep_rows(self.bundle, self.device.connection.host, rows, result)
        return rows

    def _timing(self, precision: str | None) -> list[str]:
        words = ["--backend", self.options.backend, "--seconds", f"{self.options.seconds:g}"]
        return words + (["--precision", precision] if precision else [])

    def _sweep(self, place: str, precision: str) -> None:
        """With --modes: what serves, timed in each power mode; the mode is the old one again afterwards."""
        if self.options.modes is None:
            return
        with self.steps.step(f"bench in modes {self.options.modes}"):
            words = [*self._timing(precision), "--no-peaks", "--modes", self.options.modes]
            found = self.device.call("bench", place, *words, job=True)["modes"]
        self.modes = []
        for mode in found:
            result = mode.pop("result") or {"rows": [], "conditions": {}, "environments": {}}
            own = f"@{mode['name']}"  # a row is found by its id, which says the mode it was timed in
            rows = [{**row, "id": row["id"] + own} for row in result["rows"]]
            facts = {name + own: value for name, value in result["conditions"].items()}
            keep_rows(self.bundle, self.device.connection.host, rows, {**result, "conditions": facts})
            self.modes.append({**mode, "rows": rows})

    @staticmethod
    def _named(row: dict[str, Any], shown: Proof | None) -> dict[str, Any]:
        """The device sees a table of images without splits; here it is known which they are of."""
        return {**row, "split": shown.split} if shown is not None and row["split"] == "all" else row

    def _kept(self, cargo: Cargo, row: dict[str, Any]) -> bool:
        """Whether an INT8 variant keeps on the device what its export was asked for; others have their parity."""
        if row["precision"] != str(Precision.INT8) or row["drop_pp"] is None or self.options.allow_unmet:
            return True
        record = next(r for r in cargo.records if r["precision"] == row["precision"])
        limit = float(record["options"]["max_drop"])
        if row["drop_pp"] <= limit:
            return True
        low, high = row["drop_ci_pp"]
        said = f"{row['drop_pp']:+.2f} points [{low:+.2f}, {high:+.2f}] on {row['n_images']} images, allowed {limit:g}"
        self.monitor.warn(f"int8 misses its contract on the device: {said}")
        self._missed = True
        return False

    def _refused(self, rows: list[Any], shown: Proof | None) -> EdgetlError:
        """Nothing to switch to: that is a missed contract only where one was measured to be missed."""
        if shown is not None:
            self._forget(shown)
        self._left_out.update({row["precision"]: row["error"] for row in rows if row["status"] == "failed"})
        if not self._missed:
            said = "; ".join(f"{precision}: {why}" for precision, why in self._left_out.items())
            return BackendError("no variant works on the device", said, "the release before it still serves")
        result = self._answer(None, rows)
        do = "the release before it still serves; export with another method, or deploy --precision fp16"
        return ContractUnmet(
            "no variant keeps its contract on the device", self.device.connection.host, do, result=result
        )

    def _forget(self, shown: Proof) -> None:
        """The images go that it was to be proven with, as they do after a switch: they are nobody's to keep."""
        script = f"cd {shlex.quote(self.device.root)} && rm -rf images && cd store && xargs rm -f"
        done = self.device.shell(script, "\n".join(piece.sha256 for piece in shown.pieces).encode())
        if done.code:
            self.monitor.warn(f"images stayed on the device, in {self.device.root}/store: {done.stderr.strip()}")

    def _measured_again(self, cargo: Cargo, serve: dict[str, Any]) -> Answer:
        """The release serves already: nothing is pushed or built, only its speed is measured."""
        self.steps.note("push", SKIPPED)
        place = f"{self.device.root}/releases/{cargo.release}"
        rows = self._bench(place, str(serve["precision"]), None, None)
        self._sweep(place, str(serve["precision"]))
        self._restart()
        return self._answer({"precision": serve["precision"], "key": serve.get("engine_key")}, rows)

    def _restart(self) -> None:
        unit = self.options.restart
        if unit is None:
            return
        with self.steps.step(f"restart {unit}"):
            done = self.device.shell(f"sudo -n systemctl restart -- {shlex.quote(unit)}")
            if done.code:
                said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise BackendError("the unit could not be restarted", f"{unit}: {said}", "the new release is in place")

    def _answer(self, installed: Answer | None, rows: list[Any]) -> Answer:
        found = {
            "host": self.device.connection.host,
            "probe": self.probe,
            "steps": [step.as_json() for step in self.steps.all],
            "installed": installed,
            "rows": rows,
        }
        return found if self.modes is None else {**found, "modes": self.modes}


def keep_rows(bundle: Bundle, host: str, rows: list[Any], result: Answer) -> None:
    """The device's rows, conditions and environments into the bundle's own."""
    lines = [
        json.dumps({"at": _now(), "host": host, "conditions": result["conditions"].get(row["id"]), **row})
        for row in rows
    ]
    bundle.append_rows("bench", lines)
    where = [{"at": _now(), "host": host, "id": key, **facts} for key, facts in result["environments"].items()]
    bundle.append_rows("environments", [json.dumps(facts) for facts in where])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
