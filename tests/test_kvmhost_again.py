"""A guest that the nested host's emulator has lost is told from one that we have, and its test is run once more."""

from __future__ import annotations

from typing import Any

import pytest

from tests.system.hung import IN_KVM, LOOKS, is_lost
from tests.test_grounds import CONFTEST

pytest_plugins = ["pytester"]

LOST = {
    "thread": IN_KVM,
    "rip": "0xffffffff81000000",
    "rflags": "0x246",
    "mp_state": 0,
    "in service": [],
    "requested": [236, 251],
}
OTHER = LOST | {"mp_state": 3, "requested": []}


def test_a_processor_that_kvm_runs_and_that_executes_nothing_is_lost() -> None:
    assert is_lost([[OTHER, LOST]] * LOOKS)


@pytest.mark.parametrize(
    "change",
    [
        {"thread": "202 0x7f0000000000 0x80"},  # it waits for us
        {"rflags": "0x46"},  # it has disabled interrupts
        {"mp_state": 3},  # it waits for an interrupt, which nobody has sent
        {"requested": []},
        {"in service": [252]},  # which comes first
    ],
    ids=lambda change: next(iter(change)),
)
def test_one_that_may_be_our_fault_is_not(change: dict[str, Any]) -> None:
    assert not is_lost([[OTHER, LOST | change]] * LOOKS)


def test_one_that_has_executed_something_or_was_not_seen_often_enough_is_not() -> None:
    assert not is_lost([[LOST]] * (LOOKS - 1) + [[LOST | {"rip": "0xffffffff81000002"}]])
    assert not is_lost([[LOST]] * (LOOKS - 1))


def test_nor_is_an_arm_processor() -> None:
    assert not is_lost([[{"thread": IN_KVM, "mp_state": 0}]] * LOOKS)


TESTS = """
import pytest
from tests.kvmhost.again import LostByKvm
runs = []

@pytest.fixture
def mine():
    runs.append("set up")
    yield
    runs.append("torn down")

@pytest.fixture(scope="module")
def ours():
    yield len(runs)

def test_once_lost(mine, ours):
    runs.append("run")
    if runs.count("run") == 1:
        raise LostByKvm("processor 1 stands still")

def test_seen():
    assert runs == ["set up", "run", "torn down"] * 2

@pytest.mark.parametrize("kind", [LostByKvm, AssertionError])
def test_fails(kind):
    runs.append(kind)
    raise kind("and again")

def test_seen_too():
    assert (runs.count(LostByKvm), runs.count(AssertionError)) == (2, 1)
"""


def test_it_is_run_once_more_and_the_summary_tells_of_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOVMM_KVMHOST", "1")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(["*run again, *lost its guest: *::test_once_lost*", "processor 1 stands still"])
    assert result.stdout.str().count("run again, ") == 2
