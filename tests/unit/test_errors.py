"""The error tree: one line each, drawn as it is, and the operating system's words mapped."""

from __future__ import annotations

import errno
import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl import errors
from edgetl.errors import ContractUnmet, DataError, DiskError, EdgetlError, disk_errors

TREE = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, EdgetlError)]


def test_the_docstring_draws_the_whole_tree():
    """Name and depth of each class, as drawn."""
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.split("--")[-1].split()
        if words and words[0].isidentifier() and (words[0].endswith("Error") or "-- " in line):
            drawn[words[0]] = line.index(words[0]) // 4
    assert drawn == {cls.__name__: len(cls.__mro__) - EdgetlError.__mro__.__len__() + 1 for cls in TREE}


def test_exit_codes():
    assert {cls.exit_code for cls in TREE if cls is not ContractUnmet} == {1}
    assert ContractUnmet.exit_code == 3
    assert ContractUnmet("drop", 0.7, result={"a": 1}).result == {"a": 1}


@given(what=st.text(), value=st.text(), do=st.text())
def test_any_error_is_one_line_that_can_be_printed_and_written(what, value, do):
    error = DataError(what, value, do)
    assert len(str(error).splitlines()) <= 1
    assert all(c.isprintable() or c.isspace() for c in str(error))
    str(error).encode("utf-8")
    "".join(error.as_json().values()).encode("utf-8")


def test_a_value_is_shown_as_it_is():
    path = "my  photos/été\u00a0🌼/a.jpg"  # two spaces and all: it must be possible to paste it
    assert str(DataError("no such image", path, "check it")) == f"no such image: {path}; check it"
    assert str(DataError("bad", "line one\n  line two\r\n\r\nthree\tend")) == "bad: line one line two three end"
    assert str(DataError("bad", "\x1b[31mred\udcff")) == "bad: \\x1b[31mred\\udcff"
    assert str(EdgetlError("just that")) == "just that"


@pytest.mark.parametrize("cls", TREE)
def test_errors_cross_processes(cls):
    error = cls("what", "value", "do")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (str(again), again.as_json()) == (str(error), error.as_json())


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "larger than may be written"),
        (errno.EACCES, "may not write"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "a file stands where a folder"),
        (errno.ENAMETOOLONG, "too long"),
    ],
)
def test_what_a_disk_says(number, words):
    with pytest.raises(DiskError, match=words) as caught, disk_errors("models/x"):
        raise OSError(number, "said the system")
    assert caught.value.value == "models/x"
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_of_the_system_pass():
    with pytest.raises(FileNotFoundError), disk_errors("x"):
        raise FileNotFoundError(errno.ENOENT, "no such file")
