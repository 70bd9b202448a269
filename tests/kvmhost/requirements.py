"""What Python packages the nested host needs: those that pyproject.toml declares, less what only development needs."""

from __future__ import annotations

import re
from typing import Any

from .settings import SITE_PACKAGES

# Declared for development, of no use where tests only run; aiohttp and ray are for examples that are tested outside.
_DEVELOPMENT_ONLY = re.compile(r"(aiohttp|ray|mypy|ruff|build|setuptools|wheel|coverage|atheris|types-.*)$")


def requirements(pyproject: dict[str, Any]) -> list[str]:
    """Requirement specifiers from a parsed pyproject.toml: the dependencies and, of the extras, what tests need."""
    project = pyproject["project"]
    wanted = list(project.get("dependencies", []))
    for extra in project.get("optional-dependencies", {}).values():
        wanted += [one for one in extra if not _DEVELOPMENT_ONLY.match(_name(one))]
    own = _name(project["name"])
    return sorted({one for one in wanted if _name(one) != own})


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


def distribution_files(pyproject: dict[str, Any]) -> dict[str, str]:
    """What installing the project would leave beside its code, by path in the virtual environment.

    Commands and entry points, so that `aiovmm`, `importlib.metadata` and pytest plugins work on pushed code.
    """
    project = pyproject["project"]
    name, version = project["name"], project.get("version", "0")
    info = f"{SITE_PACKAGES}/{re.sub(r'[-.]+', '_', name)}-{version}.dist-info"
    scripts = project.get("scripts", {})
    groups = {"console_scripts": scripts, **project.get("entry-points", {})}
    entry_points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items()) + "\n"
        for group, entries in groups.items()
    )
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/INSTALLER": "aiovmm-kvmhost\n",
        f"{info}/entry_points.txt": entry_points,
        f"{info}/RECORD": "",
    }
    for command, target in scripts.items():
        module, _, function = target.partition(":")
        files[f"bin/{command}"] = (
            f"#!/opt/aiovmm/bin/python3\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        )
    return files
