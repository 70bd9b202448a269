"""apt as an ordinary user uses it: asked and downloading, never installing. This machine's own, or one for the packages of
another architecture, which knows the same archives and keeps its lists to itself."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from aiovmm.errors import HostError, ImageError

__all__ = ["Apt", "foreign_apt"]

_TIMEOUT = 600  # seconds for a download
_FRESH = 24 * 3600  # seconds for which lists serve; a package that is not in the archive any more is asked for anew


@dataclass(frozen=True)
class Apt:
    """`config` is what APT_CONFIG says, None for the machine's own. Packages are of `architecture`, Debian's name ("": the
    machine's)."""

    config: Path | None = None
    architecture: str = ""

    def ask(self, *command: str) -> str | None:
        """What `command` prints; None if it cannot be run or fails."""
        try:
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=60, env=self._environment()
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    def run(self, command: list[str], package: str, cwd: str | None = None) -> None:
        """Run `command` for the sake of `package`. Raises ImageError with its last words."""
        try:
            subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=_TIMEOUT, env=self._environment())
        except FileNotFoundError as exc:
            reason = f"cannot be fetched: no program {command[0]}"
            raise ImageError(package, reason, "give a kernel with --kernel") from exc
        except subprocess.TimeoutExpired as exc:
            raise ImageError(package, f"{command[0]} took longer than {_TIMEOUT} s", "is the network up?") from exc
        except subprocess.CalledProcessError as exc:
            said = exc.stderr.decode(errors="replace").strip().splitlines()
            errors = [line for line in said if not line.startswith("W:")] or said
            reason = f"{command[0]} failed: {errors[-1] if errors else exc.returncode}"
            raise ImageError(package, reason, self._stale) from exc

    def unknown(self, package: str) -> ImageError:
        """The error for a package that it does not know."""
        if shutil.which("apt-get") is None:
            return ImageError(package, "cannot be fetched: this is not a Debian system", "give a kernel with --kernel")
        if self.config is None:
            return ImageError(package, "apt does not know this package", self._stale)
        hint = f"do this machine's apt sources name an archive that has packages for {self.architecture}?"
        return ImageError(package, f"apt does not know this package for {self.architecture}", hint)

    @property
    def _stale(self) -> str:
        """What to do about an archive that has moved on since its lists were fetched."""
        if self.config is None:
            return "run: sudo apt-get update"
        return f"is the network up? or remove {self.config.parent}, to have its lists fetched again"

    def _environment(self) -> dict[str, str] | None:
        return None if self.config is None else {**os.environ, "APT_CONFIG": str(self.config)}


def foreign_apt(architecture: str, directory: Path) -> Apt:
    """One for packages of `architecture`; all that it keeps is in `directory`. Its lists are fetched if they are older than a
    day, and serve on if that fails. Raises ImageError if there are none, HostError where nothing can be written."""
    apt = Apt(directory / "apt.conf", architecture)
    fetched = directory / "fetched"
    try:
        (directory / "lists/partial").mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        with open(directory / "lock", "w") as lock:  # apt itself would not wait for another that fetches them
            fcntl.flock(lock, fcntl.LOCK_EX)
            _configure(apt, directory)
            if not fetched.exists() or time.time() - fetched.stat().st_mtime > _FRESH:
                _update(apt, fetched)
    except OSError as exc:
        hint = "XDG_CACHE_HOME says where else packages may be kept"
        raise HostError(f"keeping lists of packages for {architecture}", exc.errno or 0, hint, str(directory)) from exc
    return apt


def _update(apt: Apt, fetched: Path) -> None:
    try:
        apt.run(["apt-get", "-qq", "update"], f"packages for {apt.architecture}")
    except ImageError:
        if not fetched.exists():
            raise
    else:
        fetched.touch()


def _configure(apt: Apt, directory: Path) -> None:
    """Its settings. The archives and their keys are the machine's; it needs no user of its own, for nobody runs what it fetches
    without a check by signature."""
    assert apt.config is not None
    text = f'''APT::Architecture "{apt.architecture}";
APT::Architectures {{ "{apt.architecture}"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
Dir::State "{directory}";
Dir::State::Lists "{directory}/lists";
Dir::State::Status "{directory}/status";
Dir::Cache "{directory}";
Dir::Cache::Archives "{directory}";
'''
    scratch = apt.config.with_suffix(".new")
    scratch.write_text(text)
    os.replace(scratch, apt.config)  # another process may be reading it
