"""A whole other Debian in a directory: made by mmdebstrap, entered as if the machine had it. For root alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from .archive import ArchiveError
from .sources import NoSources, apt_settings, sources

_ENTER = Path(__file__).with_name("enter_root.sh")
_NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.so", "*.egg-info")
_FETCHING = re.compile(
    r"Acquire::(https?|ftp|Retries|Check-|ForceIPv)"
)  # of apt's settings: what reaching a mirror here takes
PROJECT = "/root/aiovmm"


class Root:
    """A minimal Debian of the release `suite` in `directory`, which is not there yet. ArchiveError if it cannot be had.

    It has the machine's mirror, resolver, certificates and pip settings, and nothing else of it.
    """

    def __init__(self, suite: str, directory: Path) -> None:
        self.suite = suite
        self.directory = directory
        try:
            lines = sources(suite)
        except NoSources as error:
            raise ArchiveError(str(error)) from error
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io"]
        command += [f"--aptopt={setting}" for setting in apt_settings()]  # they stay in it
        command += [suite, str(directory), *(f"deb {line}" for line in lines)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ArchiveError(f"mmdebstrap makes no Debian {suite}: {done.stderr[-1000:]}")
        self._settings = {name: below_machine(value) for name, value in pip_settings().items()}

    def add_project(self, tree: Path) -> None:
        """A copy of the project as it is in `tree`, less what builds and tests leave, in PROJECT."""
        shutil.copytree(tree, self.directory / PROJECT.lstrip("/"), ignore=_NOT_COPIED, symlinks=True)

    def run(self, *command: str, cwd: str = PROJECT, timeout: float) -> str:
        """What a command says there, both streams; all that it started ends with it. AssertionError if it fails."""
        inside = ["env", "-i", f"--chdir={cwd}", *(f"{name}={value}" for name, value in self._environment().items())]
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", str(_ENTER)]
        done = subprocess.run(
            [*enter, str(self.directory), *inside, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        said = done.stdout
        assert done.returncode == 0, f"in Debian {self.suite}: {' '.join(command)}: {done.returncode}\n{said[-8000:]}"
        return said

    def _environment(self) -> dict[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **self._settings}


def pip_settings() -> dict[str, str]:
    """This machine's settings of pip, files and environment, as variables of an environment."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found = re.findall(r"^\S+\.([\w-]+)='(.*)'$", listing.stdout, re.MULTILINE)
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in found}


def below_machine(value: str) -> str:
    """A setting with its paths where enter_root.sh shows them: in their own places the packages there may have files."""
    return " ".join(re.sub(r"^(file://)?(?=/)", r"\1/machine", word) for word in value.split())
