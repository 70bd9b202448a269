"""Files between the machine and the nested host: the commands that run there, and what is done here with their output."""

from __future__ import annotations

import io
import pathlib
import tarfile

from .settings import PROJECT_IN_HOST, PYTHON_IN_HOST, SITE_PACKAGES

INSTALLED = "/opt/installed"

# The dependencies are those of the host's own environment, whose .pth file, and so the pushed code, is not followed.
INSTALL_WHEEL = f"""set -e
rm -rf {INSTALLED}
python3 -m venv --without-pip {INSTALLED}
site={INSTALLED}/{SITE_PACKAGES}
python -m pip --python {INSTALLED}/bin/python install -q --no-deps --no-index --no-compile "$1"
echo {PYTHON_IN_HOST}/{SITE_PACKAGES} >"$site/dependencies.pth"
"""


def absolute(path: str) -> str:
    """`path` in the host; a relative one starts at the project."""
    return str(pathlib.PurePosixPath(PROJECT_IN_HOST) / path)


def write_command(path: str, mode: int) -> list[str]:
    """Writes standard input to `path` in one step, making its directory."""
    script = 'mkdir -p "$(dirname "$1")" && cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"'
    return ["sh", "-c", script, "write", absolute(path), f"{mode:o}"]


def archive_command(path: str) -> list[str]:
    """Writes `path`, a file or directory, to standard output as a tar archive."""
    source = pathlib.PurePosixPath(absolute(path))
    return ["tar", "-cf", "-", "-C", str(source.parent), "--", source.name]


def unpack(archive: bytes, path: str, destination: pathlib.Path) -> None:
    """Unpack what archive_command gave for `path` as `destination`, or into it if that is a directory."""
    name = pathlib.PurePosixPath(path).name
    target = destination / name if destination.is_dir() else destination
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar.getmembers():
            member.name = target.name + member.name[len(name) :]
            tar.extract(member, target.parent, filter="data")
