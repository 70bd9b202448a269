"""The nested host's Python packages: wheels for the Python inside and all that they need there, whatever Python this is.

pip chooses wheels for another Python, but asks the Python that it runs in which requirements hold (`python_version < "3.13"`).
So what it installed is asked afterwards, on behalf of the Python inside, and pip once more with what was missing.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from .arch import X86_64, Arch
from .errors import BuildFailed
from .settings import PYTHON_VERSION

# PEP 508's names for what the Python inside is, but for its processor.
MARKERS = {
    "python_version": PYTHON_VERSION,
    "python_full_version": f"{PYTHON_VERSION}.0",
    "implementation_name": "cpython",
    "implementation_version": f"{PYTHON_VERSION}.0",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "platform_release": "",
    "platform_version": "",
    "os_name": "posix",
    "sys_platform": "linux",
    "extra": "",
}


def install(wanted: Iterable[str], site: Path, run: Callable[[list[str]], None], arch: Arch = X86_64) -> None:
    """Fill `site`, the host's directory of packages; `run` is given pip's command lines. BuildFailed if they come to no end."""
    asked = list(there(wanted, arch))
    while True:
        shutil.rmtree(site, ignore_errors=True)
        site.mkdir(parents=True)
        run(pip_command(asked, site, arch))
        missing = unmet(site, arch)
        if not missing:
            return
        if set(missing) <= set(asked):
            raise BuildFailed(
                f"pip does not install {', '.join(missing)} for the nested host's Python {PYTHON_VERSION}"
            )
        asked += [one for one in missing if one not in asked]


def pip_command(wanted: Iterable[str], site: Path, arch: Arch) -> list[str]:
    platforms = [f"manylinux_2_{minor}_{arch.name}" for minor in range(36, 4, -1)] + [f"manylinux2014_{arch.name}"]
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--root-user-action=ignore", "--no-warn-script-location", "--only-binary=:all:"),
        *(f"--python-version={PYTHON_VERSION}", "--implementation=cp"),
        *(f"--abi=cp{PYTHON_VERSION.replace('.', '')}", "--abi=abi3", "--abi=none"),
        *(f"--platform={platform}" for platform in platforms),
        *("--target", str(site), *wanted),
    ]


def there(requirements: Iterable[str], arch: Arch = X86_64) -> Iterator[str]:
    """Those of `requirements` that hold for the Python inside, without their conditions."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({**MARKERS, "platform_machine": arch.name}):
            requirement.marker = None
            yield str(requirement)


def unmet(site: Path, arch: Arch = X86_64) -> list[str]:
    """What the packages in `site` need for the Python inside and is not there, or in another version."""
    found = list(importlib.metadata.distributions(path=[str(site)]))
    versions = {_normal(one.metadata["Name"]): one.version for one in found}
    needed = {text for one in found for text in there(one.requires or [], arch)}
    return sorted(text for text in needed if not _is_met(Requirement(text), versions))


def _is_met(requirement: Requirement, versions: dict[str, str]) -> bool:
    version = versions.get(_normal(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
