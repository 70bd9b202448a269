"""The project on other systems than this machine's: Debian 13 from nothing, and the Pythons that are newer than Debian 12's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian import ArchiveError
from tests.debian.root import PROJECT, Root

ROOT = Path(__file__).resolve().parent.parent
HERE = "not kvm and not kvmhost and not kvmhost_client"  # what needs nothing but the Python
UNITS = (
    "-m",
    "pytest",
    "-q",
    "-m",
    HERE,
    *(("-n", "2") if (os.cpu_count() or 1) > 1 else ()),
    "tests",
)  # as `make test`
UNITS_LIMIT = 5400.0  # seconds: a quarter of an hour where nothing else wants the processors
pytestmark = [pytest.mark.thorough, pytest.mark.timeout(2 * UNITS_LIMIT)]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can enter another system")


def make(suite: str, directory: Path) -> Root:
    """A bare system with the project in it, as this tree has it."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed (apt-get install mmdebstrap)")
    directory.chmod(0o755)  # apt's own user fetches
    try:
        root = Root(suite, directory / suite)
    except ArchiveError as error:
        pytest.skip(str(error))
    # What any person has who has come by the project.
    root.run("sh", "-c", "apt-get -qq update && apt-get -qq install --no-install-recommends make", cwd="/", timeout=600)
    root.add_project(ROOT)
    return root


@pytest.fixture(scope="module")
def trixie() -> Iterator[Root]:
    with tempfile.TemporaryDirectory(prefix="aiovmm-", dir="/var/tmp") as directory:
        yield make("trixie", Path(directory))


@pytest.fixture(scope="module")
def sid() -> Iterator[Root]:
    with tempfile.TemporaryDirectory(prefix="aiovmm-", dir="/var/tmp") as directory:
        yield make("sid", Path(directory))


@needs_root
def test_the_demo_runs_on_a_bare_debian_13(trixie: Root) -> None:
    said = trixie.run("make", "demo", "ARGS=--script", timeout=1200)
    assert "booting the guest in the nested KVM host" in said or "booting the guest on this machine's KVM" in said
    assert "demo: on hvc0 arrived: hello from hvc0" in said
    assert "demo: the guest ended: shutdown" in said


@needs_root
@pytest.mark.parametrize(("system", "python"), [("trixie", "3.13"), ("sid", "3.14")])
def test_units_pass_with_the_python_of_a_newer_debian(system: str, python: str, request: pytest.FixtureRequest) -> None:
    root: Root = request.getfixturevalue(system)
    root.run("make", "setup-test", timeout=1200)
    version = root.run(f"{PROJECT}/.venv/bin/python", "--version", timeout=30).split()[1]
    if not version.startswith(f"{python}."):
        pytest.skip(f"no Python {python}: Debian {system} has {version}")
    assert " passed" in root.run(f"{PROJECT}/.venv/bin/python", *UNITS, timeout=UNITS_LIMIT)


def interpreters(version: str) -> Iterator[str]:
    """Programs called python3.x, also those that pyenv keeps; some may be of no use."""
    found = shutil.which(f"python{version}")
    if found:
        yield found
    yield from map(str, sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python{version}")))


def works(program: str) -> bool:
    return subprocess.run([program, "-c", "import ensurepip"], capture_output=True).returncode == 0


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_units_pass_with_another_python_of_this_machine(version: str, tmp_path: Path) -> None:
    """Where there is one beside that which runs this test; Debian's own are tried above."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return  # it is this one, and the other tests are the proof
    python = next(filter(works, interpreters(version)), None)
    if python is None:
        pytest.skip(f"no Python {version}")
    tree = tmp_path / "aiovmm"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.so", "*.egg-info")
    )
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIOVMM_", "PYTEST_", "VIRTUAL_ENV"))
    }
    options = {
        "cwd": tree,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "timeout": UNITS_LIMIT,
    }
    path = f"{tmp_path}/bin:{bare['PATH']}"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to(python)  # the one that tools/setup finds
    setup = subprocess.run(["make", "setup-test"], env={**bare, "PATH": path}, **options)  # type: ignore[call-overload]
    assert setup.returncode == 0, setup.stdout[-4000:]
    done = subprocess.run([".venv/bin/python", *UNITS], env=bare, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-8000:]
