"""The nested host's Python packages are those that the Python inside needs, whatever Python chooses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvmhost.arch import AARCH64, X86_64, Arch
from tests.kvmhost.errors import BuildFailed
from tests.kvmhost.wheels import MARKERS, install, pip_command, there, unmet

# What packages need: as `Requires-Dist` has it.
NEEDS = {
    "plain": ["always>=1", "backport; python_version < '3.13'", "future; python_version >= '3.13'"],
    "always": ["windows; sys_platform == 'win32'", "more; extra == 'all'"],
    "backport": [],
    "future": [],
}


def put(site: Path, name: str, version: str = "1.0") -> None:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {one}\n" for one in NEEDS[name])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")


class Pip:
    """Stands for one that runs in a newer Python: it finds no backport needed."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.asked: list[list[str]] = []

    def __call__(self, command: list[str]) -> None:
        wanted = command[command.index("--target") + 2 :]
        self.asked.append(wanted)
        for name in {*wanted, "always", "future"}:
            put(self.site, name.partition(">")[0])


def test_conditions_are_those_of_the_python_inside() -> None:
    assert MARKERS["python_version"] == "3.11"
    assert list(there(["fast; platform_machine == 'aarch64'"], AARCH64)) == ["fast"]
    assert list(there(["fast; platform_machine == 'aarch64'"], X86_64)) == []
    assert list(there(NEEDS["plain"])) == ["always>=1", "backport"]
    assert list(there(NEEDS["always"])) == []


def test_what_the_python_outside_does_without_is_asked_for(tmp_path: Path) -> None:
    pip = Pip(tmp_path / "site")
    install(["plain"], pip.site, pip)
    assert pip.asked == [["plain"], ["plain", "backport"]]
    assert {path.name.partition("-")[0] for path in pip.site.iterdir()} == {"plain", "always", "future", "backport"}


def test_a_version_that_does_not_do_counts_as_missing(tmp_path: Path) -> None:
    for name, version in (("plain", "1.0"), ("always", "0.9"), ("backport", "1.0")):
        put(tmp_path, name, version)
    assert unmet(tmp_path) == ["always>=1"]


def test_it_ends_where_pip_gives_what_does_not_do(tmp_path: Path) -> None:
    def stubborn(command: list[str]) -> None:
        put(tmp_path / "site", "plain")

    with pytest.raises(
        BuildFailed, match=r"pip does not install always>=1, backport for the nested host's Python 3\.11"
    ):
        install(["plain"], tmp_path / "site", stubborn)


@pytest.mark.parametrize("arch", [X86_64, AARCH64])
def test_they_are_of_the_hosts_architecture(arch: Arch) -> None:
    platforms = {word for word in pip_command(["one"], Path("/site"), arch) if word.startswith("--platform=")}
    assert f"--platform=manylinux2014_{arch.name}" in platforms
    assert all(word.endswith(arch.name) for word in platforms)
