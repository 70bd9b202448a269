"""Where kernels come from: the host's own, and Debian's packages (apt stood in for by scripts)."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiovmm.errors import ImageError
from aiovmm.image import cloud_kernel, debian_kernel, find_kernel, host_kernel
from aiovmm.image import kernel as kernel_module
from aiovmm.runtime.flock import flocked
from tests.image.conftest import GOOD, install, script
from tests.limits import HANGS
from tests.sweeping import sweeps_before_it_is_locked


def test_newest_installed_kernel(tmp_path: Path) -> None:
    for release in ("6.9.0-1-amd64", "6.12.3+deb13-amd64", "6.1.0-56-cloud-amd64"):
        install(tmp_path, release)
    files = host_kernel(tmp_path)
    assert files.release == "6.12.3+deb13-amd64"
    assert files.kernel == tmp_path / "boot/vmlinuz-6.12.3+deb13-amd64"
    assert files.modules == tmp_path / "lib/modules/6.12.3+deb13-amd64"


def test_kernel_beside_its_modules(tmp_path: Path) -> None:
    directory = tmp_path / "usr/lib/modules/6.15.1-arch1"
    (directory / "kernel").mkdir(parents=True)
    (directory / "vmlinuz").write_bytes(GOOD)
    assert host_kernel(tmp_path).kernel == directory / "vmlinuz"


def test_kernel_without_modules(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-x", modules=False)
    assert host_kernel(tmp_path).modules is None


def test_kernels_that_do_not_boot_here_are_passed_over(tmp_path: Path) -> None:
    install(tmp_path, "6.9.0-broken", GOOD[:1500])
    install(tmp_path, "6.8.0-text", b"what?")
    install(tmp_path, "6.1.0-good")
    assert host_kernel(tmp_path).release == "6.1.0-good"


def test_no_kernel_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no kernel is installed.*apt-get install"):
        host_kernel(tmp_path)
    install(tmp_path, "6.8.0-text", b"what?")
    with pytest.raises(ImageError, match=r"6\.8\.0-text: not a kernel"):
        host_kernel(tmp_path)


def package(apt: Path, tmp_path: Path) -> Path:
    """An archive that has one kernel package behind the meta-package; counts its downloads."""
    content = tmp_path / "content"
    install(content, "6.1.0-99-cloud-amd64")
    script(
        apt,
        "apt-cache",
        """
if [ $1 = depends ]; then
  echo linux-image-cloud-amd64; echo '  Depends: linux-image-6.1.0-99-cloud-amd64'
else
  echo "$2:"; echo '  Installed: (none)'; echo '  Candidate: 1:6.1.99-1'
fi""",
    )
    script(apt, "apt-get", f"echo x >>{tmp_path}/downloads; echo deb >linux.deb")
    script(apt, "dpkg-deb", f'cp -r {content} "$3"')
    return tmp_path / "downloads"


def test_debian_kernel_is_downloaded_once(apt: Path, tmp_path: Path) -> None:
    downloads = package(apt, tmp_path)
    for _ in range(2):
        files = debian_kernel(cache=tmp_path / "cache")
        assert files.release == "6.1.0-99-cloud-amd64"
        assert files.kernel.read_bytes() == GOOD
        assert files.modules is not None
        assert files.modules.is_dir()
    assert downloads.read_text() == "x\n"
    assert not list((tmp_path / "cache").glob(".tmp*"))


def test_a_kernel_that_comes_in_several_packages_is_whole(apt: Path, tmp_path: Path) -> None:
    """Debian 14's package of a kernel is empty, and depends on those that hold it."""
    release = "7.2.13+deb14-cloud-amd64"
    for name, path in (
        ("binary", f"usr/lib/modules/{release}/vmlinuz"),
        ("modules", f"usr/lib/modules/{release}/kernel/x"),
    ):
        (tmp_path / f"linux-{name}-{release}" / path).parent.mkdir(parents=True)
        (tmp_path / f"linux-{name}-{release}" / path).write_bytes(GOOD)
    (tmp_path / f"linux-image-{release}/usr").mkdir(parents=True)
    script(
        apt,
        "apt-cache",
        f"""
for name; do :; done
case $1.$name in
  depends.linux-image-cloud-amd64) echo '  Depends: linux-image-{release}';;
  depends.*) printf '  Depends: linux-%s-{release}\n' binary modules; echo '  Depends: initramfs-tools';;
  *) echo '  Candidate: 7.2.13-1'; echo;;
esac""",
    )
    script(apt, "apt-get", 'shift; for package; do echo >"${package%%=*}.deb"; done')
    script(apt, "dpkg-deb", f'name=${{2##*/}}; mkdir -p "$3"; cp -r {tmp_path}/"${{name%.deb}}"/. "$3"')
    files = debian_kernel(cache=tmp_path / "cache")
    assert files.release == release
    assert files.kernel.read_bytes() == GOOD
    assert files.modules is not None
    assert (files.modules / "kernel/x").read_bytes() == GOOD


def test_debian_kernel_offline_is_the_one_in_the_cache(apt: Path, tmp_path: Path) -> None:
    package(apt, tmp_path)
    first = debian_kernel(cache=tmp_path / "cache")
    script(apt, "apt-cache", "exit 100")
    assert debian_kernel(cache=tmp_path / "cache") == first


def test_apt_without_lists(apt: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="apt-get update"):
        debian_kernel(cache=tmp_path / "cache")


def test_failed_download_leaves_nothing(apt: Path, tmp_path: Path) -> None:
    package(apt, tmp_path)
    script(apt, "apt-get", "echo 'W: slow' >&2; echo 'E: Failed to fetch it: 404' >&2; exit 100")
    with pytest.raises(ImageError, match=r"apt-get failed: E: Failed to fetch it: 404.*apt-get update"):
        debian_kernel(cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_damaged_package_leaves_nothing(apt: Path, tmp_path: Path) -> None:
    package(apt, tmp_path)
    script(apt, "dpkg-deb", "echo 'dpkg-deb: error: not a Debian archive' >&2; exit 2")
    with pytest.raises(ImageError, match="not a Debian archive"):
        debian_kernel(cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_what_a_download_that_was_killed_has_left_goes_with_the_next(apt: Path, tmp_path: Path) -> None:
    """It is as large as a kernel and its package, and hidden. apt-get and dpkg-deb may run yet: what is locked stays."""
    package(apt, tmp_path)
    cache = tmp_path / "cache"
    script(apt, "dpkg-deb", 'kill -9 "$PPID"')
    command = [sys.executable, "-c", f"from aiovmm.image import debian_kernel; debian_kernel(cache={str(cache)!r})"]
    assert subprocess.run(command, timeout=HANGS, capture_output=True).returncode == -signal.SIGKILL
    assert list(cache.glob(".tmp-*/linux.deb"))
    (written := cache / ".tmp-written").mkdir()
    script(apt, "dpkg-deb", f'cp -r {tmp_path}/content "$3"')
    with flocked(written, fcntl.LOCK_EX):
        debian_kernel(cache=cache)
    assert [path for path in cache.iterdir() if path.name.startswith(".")] == [written]


def test_one_that_was_swept_away_before_it_was_locked_is_begun_again(
    apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(apt, tmp_path)
    swept = sweeps_before_it_is_locked(monkeypatch, os.rmdir)
    assert debian_kernel(cache=tmp_path / "cache").release
    assert swept


def test_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match=r"not a Debian system.*--kernel"):
        debian_kernel(cache=tmp_path / "cache")


def test_without_any_kernel_both_reasons_are_given(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(root: str | os.PathLike[str] = "/") -> None:
        raise ImageError("/boot", "no kernel is installed on this host")

    monkeypatch.setattr(kernel_module, "host_kernel", none_here)
    with pytest.raises(ImageError, match=rf"{cloud_kernel()}: apt does not know.*no kernel is installed"):
        find_kernel(cache=tmp_path / "cache")
