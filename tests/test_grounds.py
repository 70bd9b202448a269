"""What is run on CI fails when it is skipped, wherever it runs; and tests that are handed elsewhere leave no set-up behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import grounds
from tests.kvmhost import delegate, plugin
from tests.kvmhost.arch import AARCH64
from tests.system.grounds import CORE, CORE_AARCH64

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("reason", "has_kvm", "excused"),
    [
        ("/dev/kvm cannot be used: no permission", True, False),
        ("/dev/kvm cannot be used: it is not there", False, True),
        ("no nested KVM host: qemu-system-x86_64 not installed", True, False),
        ("tmux is not installed", True, False),
        ("no Debian kernel: none found", True, False),
        ("root may write to everything", True, True),
        ("no Python 3.14", True, True),
        ("io_uring: Operation not permitted", True, True),
        ("the host's kernel has no USO for TAPs (Linux 6.2)", True, True),
    ],
)
def test_only_what_no_package_can_bring_is_excused(reason: str, has_kvm: bool, excused: bool) -> None:
    assert grounds.excused(reason, has_kvm=has_kvm) is excused


def test_the_reason_is_found_in_a_report() -> None:
    assert grounds.skip_reason(("tests/test_x.py", 3, "Skipped: tmux is not installed")) == "tmux is not installed"


CONFTEST = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.conftest import *
"""

SKIPS = """
import pytest
def test_of_a_program(): pytest.skip("tmux is not installed")
@pytest.mark.skipif(True, reason="root may write to everything")
def test_of_the_machine(): ...
"""


@pytest.mark.parametrize(("required", "failed"), [("0", 0), ("1", 1)])
def test_a_skip_fails_where_grounds_are_required(
    required: str, failed: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOVMM_REQUIRE_GROUNDS", required)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SKIPS)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(skipped=2 - failed, failed=failed)


@pytest.mark.parametrize("required", ["", "1"])
def test_tests_of_nested_hosts_that_there_cannot_be_are_skipped_or_fail(required: str, tmp_path: Path) -> None:
    """The marks of tests/system are set by its conftest, and have to be there when the plugin looks for them."""
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "AIOVMM_REQUIRE_GROUNDS": required}
    tests = ["tests/system/test_failed_entry.py", "tests/test_kvmhost_aarch64.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert (" skipped" in done.stdout, " failed" in done.stdout) == (not required, bool(required)), done.stdout
    for arch in ("x86_64", "aarch64"):
        assert f"no nested KVM host of {arch}" in done.stdout or required
        assert f"qemu-system-{arch}" in done.stdout


HANDED_OVER = """
import pytest
@pytest.fixture(scope="module", autouse=True)
def around():
    yield
    print("module is torn down")
def test_here(): ...
@pytest.mark.kvmhost
def test_there(): ...
"""

REMOTE = """
import pytest
from tests.kvmhost import plugin
from tests.kvmhost.arch import AARCH64
from tests.system.grounds import CORE, CORE_AARCH64
class Session:
    def __init__(self, config, profile, nodeids): pass
    def reports(self, item):
        for when in ("setup", "call", "teardown"):
            yield pytest.TestReport(item.nodeid, item.location, {}, "passed", None, when)
    def close(self): pass
plugin.RemoteSession = Session
plugin.lacking = lambda arch: ""
plugin.INSIDE = False
"""


def test_the_next_test_finds_nothing_of_the_last_ones_module(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(CONFTEST + REMOTE)
    pytester.makeini("[pytest]\nmarkers = kvmhost: x\nasyncio_default_fixture_loop_scope = function")
    for folder in ("a", "b"):
        pytester.mkpydir(folder)
        (pytester.path / folder / f"test_{folder}.py").write_text(HANDED_OVER)
    result = pytester.runpytest_subprocess("-s", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4)
    assert result.stdout.str().count("module is torn down") == 2


MARKS = """
import pytest
@pytest.mark.kvmhost(profile="vfio", cpu="max")
@pytest.mark.parametrize("host", [pytest.param(1, marks=pytest.mark.kvmhost(arch="aarch64")), 2])
def test_there(host): ...
def test_that_gives_commands(kvmhost_possible): ...
@pytest.mark.kvmhost
def test_in_the_same_host(): ...
def test_here(): ...
"""


def test_marks_on_a_test_and_on_its_parameters_add_up(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\nmarkers = kvmhost: x")
    items = pytester.getitems(MARKS)
    monkeypatch.setattr(plugin, "INSIDE", False)
    arm, x86, gives_commands, there, here = items
    assert [profile and profile.name for profile in map(plugin._profile, items)] == [
        *("aarch64-vfio", "vfio", None, "default", None)
    ]
    assert sorted(items, key=plugin._host_order) == [here, arm, there, gives_commands, x86]


@pytest.mark.parametrize("loops", ["", "asyncio", "uvloop"])
def test_a_test_has_the_same_name_there(loops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event loop is a part of that where there is more than one; the pytest there is started with names from here."""
    monkeypatch.setenv("AIOVMM_LOOPS", loops)
    words = delegate._environment()
    there = dict(word.split("=", 1) for word in words if word != "--env")
    assert len({names({"AIOVMM_LOOPS": loops}), names(there)}) == 1


def names(environment: dict[str, str]) -> tuple[str, ...]:
    """Of tests of a nested host that have parameters and run on event loops, as pytest calls them in this environment."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        "tests/kvm/aarch64/test_guests.py",
    ]
    env = {"PATH": os.environ["PATH"], **environment}
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=120)
    found = tuple(line for line in said.stdout.splitlines() if "[" in line and "::test_" in line)
    assert found
    return found


@pytest.mark.timeout(300)
def test_what_is_to_run_in_the_nested_hosts_is_there() -> None:
    """A part of a name that no test has any more, since a parameter was added, would leave its file out without a word."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests/system"]
    environment = {key: value for key, value in os.environ.items() if key not in ("AIOVMM_THOROUGH", "PYTEST_ADDOPTS")}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=240)
    tests = said.stdout.splitlines()
    usual = f"[{AARCH64.name}-"  # of its usual processor
    of_arm = [line.replace(usual, "[") for line in tests if usual in line or f"[{AARCH64.name}]" in line]
    for table, lines in ((CORE, tests), (CORE_AARCH64, of_arm)):
        for file, parts in table.items():
            named = [line for line in lines if line.startswith(f"tests/system/{file}::")]
            missing = [part for part in parts.split(" or ") if not any(part in line for line in named)]
            assert not missing, f"no test of {file} has {missing} in its name"
