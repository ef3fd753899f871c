"""`qbench backends`: what a fork of a shared process finds is what a fresh interpreter would."""

from __future__ import annotations

from typing import ClassVar

import pytest

from qbench.config import Backend
from qbench.plan.backends import _works_in_a_fork, probe


class Lacking(Backend):
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "no_such_module")


class Uninstalled(Backend):
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "no-such-distribution")


class Crashing(Backend):
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "tests.support.crashing")


def test_a_fork_tells_what_imports_from_what_does_not() -> None:
    assert _works_in_a_fork(Backend)
    assert not _works_in_a_fork(Lacking)
    assert not _works_in_a_fork(Uninstalled)
    assert not _works_in_a_fork(Crashing)
    assert _works_in_a_fork(Backend)  # after the crash of another
    assert {one.kind: one.reason for one in probe(["fp16", "int4"])} == {"fp16": None, "int4": None}


def test_a_kind_for_gpus_does_not_work_where_there_is_none() -> None:
    pytest.importorskip("compressed_tensors")
    (found,) = probe(["compressed-tensors"])
    assert (found.reason, found.remedy) == ("it needs device: cuda, which is not here", "")
