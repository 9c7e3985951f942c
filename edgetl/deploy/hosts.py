"""Many devices at once: an inventory, each host for itself, one table at the end."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgetl.deploy.stage import DeployOptions
from edgetl.errors import ContractUnmet, EdgetlError, InputError
from edgetl.monitor import Monitor
from edgetl.spec import Precision, parse_enum

_OWN = ("precision", "backend", "name", "port", "prove", "keep", "restart", "batch", "seconds", "timeout_s", "modes")
AT_ONCE = 8  # devices; each waits for its own builds


@dataclass(frozen=True)
class Host:
    """One device of an inventory, with what it wants otherwise than the command line says."""

    host: str
    options: DeployOptions


class Prefixed(Monitor):
    """Says whose line it is; several devices talk at once, so there are no bars."""

    def __init__(self, host: str, inner: Monitor) -> None:
        self._host, self._inner = host, inner

    def say(self, line: str) -> None:
        """The line behind the host's name."""
        self._inner.say(f"{self._host}: {line}")

    def warn(self, line: str) -> None:
        """The line behind the host's name, as a warning."""
        self._inner.warn(f"{self._host}: {line}")


def read_inventory(path: Path, options: DeployOptions) -> list[Host]:
    """The hosts of a TOML file: a table [[host]] each, with "host" and any of the options above.

    Raises InputError: no such file, no TOML, no host, an unknown key or value.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("the inventory cannot be read", f"{path} ({error})", _EXAMPLE) from error
    rows = found.get("host")
    if not isinstance(rows, list) or not rows or set(found) != {"host"}:
        raise InputError("the inventory wants a [[host]] for each device", path, _EXAMPLE)
    hosts = [_host(row, path, options) for row in rows]
    names = [host.host for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("a device is there twice", twice[0], f"look into {path}")
    return hosts


_EXAMPLE = 'for example:  [[host]]  host = "user@orin"  precision = "int8"'


def _host(row: object, path: Path, options: DeployOptions) -> Host:
    if not isinstance(row, dict) or not isinstance(row.get("host"), str):
        raise InputError("a [[host]] without its host", path, _EXAMPLE)
    own = {key: value for key, value in row.items() if key != "host"}
    unknown = sorted(set(own) - set(_OWN))
    if unknown:
        raise InputError("unknown key in the inventory", unknown[0], "known: host, " + ", ".join(_OWN))
    if "precision" in own:
        own["precision"] = parse_enum(Precision, own["precision"], "precision")
    kinds = {field.name: type(getattr(options, field.name)) for field in fields(options)}
    for key, value in own.items():
        wanted = {"name": str, "restart": str, "modes": str, "port": int, "precision": Precision}.get(key, kinds[key])
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise InputError(f"{key} of {row['host']} has a wrong type", repr(value), f"it wants {wanted.__name__}")
    return Host(row["host"], replace(options, **own))


Each = Callable[[Host, Monitor], Mapping[str, Any]]


def on_all(hosts: list[Host], each: Each, monitor: Monitor) -> tuple[list[Mapping[str, Any]], int]:
    """(an object for each host in order, the exit code): 1 if any failed, else 3 if any missed its contract.

    A failure is that host's: {"host", "error"}; the others go on.
    """

    def one(host: Host) -> tuple[Mapping[str, Any], int]:
        try:
            return each(host, Prefixed(host.host, monitor)), 0
        except ContractUnmet as error:
            return {**error.result, "host": host.host, "error": error.as_json()}, error.exit_code
        except EdgetlError as error:
            return _failed(host, error, monitor)
        except Exception as error:  # whatever it is, it is this host's, and the others' results are not to be lost
            return _failed(host, EdgetlError("unexpected " + type(error).__name__, error), monitor)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(one, hosts))
    codes = {code for _, code in found}
    return [result for result, _ in found], 1 if codes & {1, 2} else max(codes, default=0)


def _failed(host: Host, error: EdgetlError, monitor: Monitor) -> tuple[Mapping[str, Any], int]:
    monitor.warn(f"{host.host}: {error}")
    return {"host": host.host, "error": error.as_json()}, error.exit_code
