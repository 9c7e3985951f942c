"""What can be asked of a device beside a deploy: what it is and holds, and to serve the release before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetl.deploy import app
from edgetl.deploy.emit.served import plain_name
from edgetl.deploy.remote import Device
from edgetl.deploy.ssh import Connection
from edgetl.deploy.stage import DeployOptions

Answer = dict[str, Any]


def status(bundle: Path, host: str, options: DeployOptions) -> Answer:
    """{"host", "probe", "advice", "state", "shown"}; the bundle is only asked for its name. Raises ConnectionLost."""
    with Connection(host, options.port, options.timeout_s, options.ssh) as connection:
        device = Device(connection, _name(bundle, options), app.build_app(), leaves=False)
        told = device.probe("--state", device.root)
    probe, state = told["probe"], told["state"]
    board = probe["board"]
    shown = [
        ("device", f"{host}: {board['model'] or board['name']}, JetPack {probe['jetpack']}, {probe['os']}"),
        ("TensorRT", probe["tensorrt"]["version"] or "none that loads"),
        ("memory", f"{probe['memory']['available_mb']} of {probe['memory']['total_mb']} MB"),
        ("serves", f"{state['current'] or 'nothing'} {(state['serve'] or {}).get('precision', '')}".strip()),
        ("releases", ", ".join(state["releases"]) or "none"),
        ("engines", ", ".join(state["engines"]) or "none"),
    ]
    return {"host": host, "probe": probe, "advice": told["advice"], "state": state, "shown": shown}


def advice(host: str, port: int | None = None, ssh: tuple[str, ...] = ()) -> Answer:
    """{"host", "rows": doctor's rows, "probe"}: what a device will and will not do. Raises ConnectionLost."""
    with Connection(host, port, options=ssh) as connection:
        told = Device(connection, "probe", app.build_app(), leaves=False).probe()
    return {"host": host, "rows": told["advice"], "probe": told["probe"]}


def rollback(bundle: Path, host: str, options: DeployOptions) -> Answer:
    """{"host", "current", "previous", "shown"}. Raises EdgetlError where there is no release to go back to."""
    with Connection(host, options.port, options.timeout_s, options.ssh) as connection:
        device = Device(connection, _name(bundle, options), app.build_app())
        with device.locked():
            found = device.call("activate", device.root, "--rollback", "--keep", str(options.keep))
    shown = [("serves now", found["current"]), ("served before", found["previous"])]
    return {"host": host, "current": found["current"], "previous": found["previous"], "shown": shown}


def _name(bundle: Path, options: DeployOptions) -> str:
    return options.name or plain_name(bundle.resolve().name)
