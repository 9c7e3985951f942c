"""Many devices: what an inventory may say, and the exit code where some of them fail or miss their contract."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.deploy.hosts import Host, on_all, read_inventory
from edgetl.deploy.stage import DeployOptions
from edgetl.errors import BackendError, ConnectionLost, ContractUnmet, EdgetlError, InputError
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Precision


def ended(how: str) -> Mapping[str, Any]:
    errors: dict[str, EdgetlError] = {
        "lost": ConnectionLost("the connection was lost", "orin"),
        "failed": BackendError("no TensorRT", "orin"),
        "bad": InputError("no such mode", "orin"),
        "unmet": ContractUnmet("no variant keeps its contract", "orin", result={"rows": [1]}),
    }
    if how in errors:
        raise errors[how]
    if how == "broken":
        raise OSError(28, "No space left on device")
    return {"host": how}


@given(st.lists(st.sampled_from(["good", "lost", "failed", "bad", "unmet", "broken"]), min_size=1, max_size=12))
def test_a_failure_is_one_hosts_and_the_worst_is_the_exit_code(ways: list[str]) -> None:
    hosts = [Host(f"{way}{index}", DeployOptions()) for index, way in enumerate(ways)]
    found, code = on_all(hosts, lambda host, monitor: ended(host.host.rstrip("0123456789")), SILENT)
    assert len(found) == len(ways)
    for way, host, result in zip(ways, hosts, found, strict=True):
        assert ("error" in result) == (way != "good")
        assert way == "good" or result["host"] == host.host
        assert way != "unmet" or result["rows"] == [1]
    assert code == (1 if {"lost", "failed", "bad", "broken"} & set(ways) else 3 if "unmet" in ways else 0)


def test_what_is_said_carries_the_hosts_name() -> None:
    class Heard(Monitor):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, line: str) -> None:
            self.lines.append(line)

    heard = Heard()

    def each(host: Host, monitor: Monitor) -> Mapping[str, Any]:
        monitor.say("building")
        return {}

    on_all([Host("orin", DeployOptions()), Host("thor", DeployOptions())], each, heard)
    assert sorted(heard.lines) == ["orin: building", "thor: building"]


def written(folder: Path, text: str) -> Path:
    (folder / "hosts.toml").write_text(text, encoding="utf-8")
    return folder / "hosts.toml"


def test_a_host_may_want_other_options_than_the_command_line(tmp_path: Path) -> None:
    text = '[[host]]\nhost = "me@orin"\n[[host]]\nhost = "thor"\nprecision = "int8"\nseconds = 3\nmodes = "all"\n'
    first, second = read_inventory(written(tmp_path, text), DeployOptions(keep=5))
    assert (first.host, first.options) == ("me@orin", DeployOptions(keep=5))
    options = second.options
    assert (options.precision, options.seconds, options.modes, options.keep) == (Precision.INT8, 3, "all", 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "wants a [[host]]"),
        ("[[host]", "cannot be read"),
        ('[[host]]\nname = "orin"', "without its host"),
        ('[[host]]\nhost = "orin"\npassword = "x"', "unknown key in the inventory: password"),
        ('[[host]]\nhost = "orin"\nkeep = "3"', "keep of orin has a wrong type"),
        ('[[host]]\nhost = "orin"\nprecision = "int4"', "unknown precision: int4"),
        ('[[host]]\nhost = "orin"\n[[host]]\nhost = "orin"', "there twice: orin"),
        ('[defaults]\nkeep = 3\n[[host]]\nhost = "orin"', "wants a [[host]]"),
    ],
)
def test_an_inventory_that_cannot_be_meant(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_inventory(written(tmp_path, text), DeployOptions())
    assert said in str(caught.value)
