"""Packages for another architecture than the host's: an apt that keeps its lists to itself (apt stood in for by a script)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiovmm.architecture import AARCH64, X86_64, host
from aiovmm.errors import ImageError
from aiovmm.image import debian_busybox, debian_kernel, find_kernel
from tests.boot.aarch64.images import image
from tests.boot.images import elf
from tests.image.conftest import GOOD, install, script

OTHER, KERNEL = (AARCH64, image()) if host() is X86_64 else (X86_64, GOOD)
RELEASE = f"6.1.0-99-cloud-{OTHER.debian}"


@pytest.fixture
def log(apt: Path, tmp_path: Path) -> Path:
    """An archive with one kernel and a busybox, for OTHER alone; what apt-get was asked for, one line each."""
    content = tmp_path / "content"
    install(content, RELEASE, KERNEL)
    busybox = content / "bin/busybox"
    busybox.parent.mkdir()
    busybox.write_bytes(elf(machine=OTHER.elf[2]))
    known = f'grep -q \'APT::Architecture "{OTHER.debian}"\' "$APT_CONFIG" || exit 100'
    script(
        apt,
        "apt-cache",
        f"""
{known}
if [ $1 = depends ]; then
  echo '  Depends: linux-image-{RELEASE}'
else
  echo '  Candidate: 6.1.99-1'
fi""",
    )
    script(apt, "apt-get", f'{known}\necho "$@" >>{tmp_path}/log\n[ "$1" = download ] && echo deb >x.deb\ntrue')
    script(apt, "dpkg-deb", f'cp -r {content} "$3"')
    return tmp_path / "log"


def test_kernel_of_another_architecture_is_fetched_once(log: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        files = find_kernel(cache, arch=OTHER)
        assert files.release == RELEASE
        assert files.kernel.read_bytes() == KERNEL
        assert files.kernel.is_relative_to(cache / OTHER.debian)
    assert log.read_text().splitlines() == ["-qq update", f"download linux-image-{RELEASE}=6.1.99-1"]


def test_busybox_of_another_architecture_is_not_the_hosts(log: Path, tmp_path: Path) -> None:
    path = debian_busybox(tmp_path / "cache", arch=OTHER)
    assert int.from_bytes(path.read_bytes()[18:20], "little") == OTHER.elf[2]
    assert "download busybox-static=6.1.99-1" in log.read_text()


def test_lists_are_fetched_again_when_they_are_old(log: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    find_kernel(cache, arch=OTHER)
    os.utime(cache / OTHER.debian / "apt/fetched", (0, 0))
    find_kernel(cache, arch=OTHER)
    assert log.read_text().count("update") == 2


def test_without_a_network_what_there_is_serves(log: Path, apt: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = debian_kernel(cache=cache, arch=OTHER)
    os.utime(cache / OTHER.debian / "apt/fetched", (0, 0))
    script(apt, "apt-get", "echo 'E: no network' >&2; exit 100")
    assert debian_kernel(cache=cache, arch=OTHER) == first


def test_an_archive_that_cannot_be_reached(log: Path, apt: Path, tmp_path: Path) -> None:
    script(apt, "apt-get", "echo 'E: no network' >&2; exit 100")
    with pytest.raises(
        ImageError, match=f"packages for {OTHER.debian}: apt-get failed: E: no network.*is the network up"
    ):
        debian_kernel(cache=tmp_path / "cache", arch=OTHER)


def test_an_archive_that_has_nothing_for_it(log: Path, apt: Path, tmp_path: Path) -> None:
    script(apt, "apt-cache", "exit 100")
    with pytest.raises(ImageError, match=f"apt does not know this package for {OTHER.debian}.*apt sources"):
        debian_kernel(cache=tmp_path / "cache", arch=OTHER)


def test_an_archive_that_has_moved_on(log: Path, apt: Path, tmp_path: Path) -> None:
    """Its lists are of this morning, and what they name is not there any more."""
    cache = tmp_path / "cache"
    script(apt, "apt-get", "[ \"$1\" != download ] || { echo 'E: 404  Not Found' >&2; exit 100; }")
    with pytest.raises(ImageError, match=f"404  Not Found.*remove {cache}/{OTHER.debian}/apt, to have its lists"):
        debian_kernel(cache=cache, arch=OTHER)


def test_two_that_fetch_lists_at_once(log: Path, apt: Path, tmp_path: Path) -> None:
    """One waits for the other, and finds them."""
    script(
        apt,
        "apt-get",
        f"""
echo "$@" >>{tmp_path}/log
[ "$1" != download ] || {{ echo deb >x.deb; exit 0; }}
mkdir {tmp_path}/busy || exit 100
sleep 0.2; rmdir {tmp_path}/busy""",
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: debian_kernel(cache=tmp_path / "cache", arch=OTHER), range(4)))
    assert len(set(found)) == 1
    assert log.read_text().count("update") == 1


def test_no_kernel_of_another_architecture_stands_in_for_the_hosts(log: Path, apt: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    debian_kernel(cache=cache, arch=OTHER)
    with pytest.raises(ImageError, match="apt-get update"):
        debian_kernel(cache=cache)


def test_a_system_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match=r"no program apt-get.*--kernel"):
        debian_kernel(cache=tmp_path / "cache", arch=OTHER)
