"""The stock kernels in the nested host, fetched from Debian's archive and laid out as it has them under /guest."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Mapping

from tests.debian import Archive, ArchiveError

from .arch import Arch
from .errors import BuildFailed

# In a directory for each: `vmlinuz`, `config`, `release` (uname -r) and `modules/`, which the image has where a host has them.
Say = Callable[[str], None]


def fetch_kernels(
    arch: Arch, kernels: Mapping[str, tuple[str, str]], optional: tuple[str, ...], stage: pathlib.Path, say: Say
) -> None:
    """Into `stage`/kernels/NAME each of `kernels` (suite, meta-package). BuildFailed; an `optional` one may be missing."""
    archives: dict[str, Archive] = {}
    for name, (suite, package) in kernels.items():
        archive = archives.setdefault(suite, Archive(suite, stage / f"apt-{suite}", arch.debian))
        try:
            release = _lay_out(archive, package, stage / "kernels" / name)
        except ArchiveError as error:
            if name not in optional:
                raise BuildFailed(f"no kernel {name}: {error}") from error
            say(f"without the {name} kernel: {error} (build --force tries again)")
        else:
            say(f"kernel {name} is {release}")


def _lay_out(archive: Archive, package: str, target: pathlib.Path) -> str:
    root = target.with_name(f"{target.name}.package")
    root.mkdir(parents=True)
    files = archive.unpack_kernel(package, root)
    if files.modules is None:
        raise ArchiveError(f"{package} has no modules")
    configs = (root / f"boot/config-{files.release}", files.modules / "config")
    target.mkdir()
    shutil.copy(files.kernel, target / "vmlinuz")
    for config in configs:
        if config.exists():
            shutil.copy(config, target / "config")
    (target / "release").write_text(f"{files.release}\n")
    files.modules.rename(target / "modules")
    shutil.rmtree(root)
    return files.release
