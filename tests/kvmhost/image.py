"""Builds the nested host's disk image and keeps it, by the key of its recipe, for all later starts."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tests.debian import Archive, ArchiveError, NoSources, Unpacked, apt_settings, sources

from . import recipe as recipes
from . import wheels
from .arch import ARCHES, Arch
from .errors import BuildFailed, MissingTool
from .initramfs import load_order
from .kernels import fetch_kernels
from .lock import HostLock
from .requirements import requirements
from .settings import PROJECT, PROJECT_IN_HOST, PYTHON_IN_HOST, PYTHON_VERSION, SITE_PACKAGES
from .tools import SBIN, missing_tools, needed_tools

_KEPT_IMAGES = 3  # of each architecture
_SCRIPTS = {"hook.sh": "image_hook.sh", "foreign.sh": "image_hook_foreign.sh"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    directory: pathlib.Path

    @property
    def key(self) -> str:
        return self.directory.name

    @property
    def disk(self) -> pathlib.Path:
        return self.directory / "disk.img"

    @property
    def kernel(self) -> pathlib.Path:
        return self.directory / "vmlinuz"

    @property
    def boot(self) -> pathlib.Path:
        return self.directory / "boot"


def current_recipe(arch: Arch) -> recipes.Recipe:
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    here = pathlib.Path(__file__).parent
    scripts = {name: (here / source).read_text() for name, source in _SCRIPTS.items()}
    return recipes.Recipe.of(arch, [*requirements(pyproject), *recipes.TOOL_REQUIREMENTS], scripts)


def ensure_image(cache: pathlib.Path, say: Say, arch: Arch, *, force: bool = False) -> Image:
    """The image of the current recipe, built if it is not there. MissingTool, BuildFailed."""
    recipe = current_recipe(arch)
    image = Image(cache / "images" / recipe.key)
    if image.directory.exists() and not force:
        os.utime(image.directory)
        return image
    missing = missing_tools(needed_tools(arch))
    if missing:
        raise MissingTool(missing)
    with HostLock(cache / "images.lock", say):
        if force or not image.directory.exists():
            _build(recipe, image, say)
            _prune(image, recipe)
    return image


def _build(recipe: recipes.Recipe, image: Image, say: Say) -> None:
    started = time.monotonic()
    say(f"building the {recipe.arch} nested host's image {image.key} (once; takes a minute or two)")
    image.directory.parent.mkdir(parents=True, exist_ok=True)
    # As root beside its final place; else where the user namespace's root, a stranger, can get at it.
    place = image.directory.parent if os.geteuid() == 0 else pathlib.Path("/var/tmp")
    with tempfile.TemporaryDirectory(prefix="building-", dir=place) as name:
        stage = pathlib.Path(name)
        _lay_out(stage, recipe)
        say("Python packages")
        _install_packages(recipe, stage / "overlay", say)
        say("kernels")
        fetch_kernels(ARCHES[recipe.arch], recipe.kernels, recipes.OPTIONAL_KERNELS, stage, say)
        say("Debian packages")
        tools = image.directory.parent.parent / "tools"
        tools.mkdir(exist_ok=True)
        _copy_files(tools, stage / "tools")
        _make_disk(recipe, stage, say)
        _copy_files(stage / "tools", tools)
        _finish_boot_files(recipe, stage / "out")
        if image.directory.exists():
            shutil.rmtree(image.directory)
        _move(stage / "out", image.directory, say)
    say(f"image ready after {time.monotonic() - started:.0f} s: {image.directory}")


def _copy_files(source: pathlib.Path, destination: pathlib.Path) -> None:
    for path in source.iterdir():
        shutil.copy(path, destination)


def _move(directory: pathlib.Path, destination: pathlib.Path, say: Say) -> None:
    try:
        directory.rename(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = destination.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        # Not shutil: the disk image is nearly all holes.
        _run(["cp", "-r", "--sparse=always", str(directory), str(partial)], "cp", say)
        partial.rename(destination)


def _lay_out(stage: pathlib.Path, recipe: recipes.Recipe) -> None:
    stage.chmod(0o755)
    for name in ("overlay", "kernels", "debs", "tools", "out/boot"):
        (stage / name).mkdir(parents=True)
    for name in ("debs", "tools", "out", "out/boot"):
        (stage / name).chmod(0o777)
    for name, text in recipe.scripts.items():
        (stage / name).write_text(text)
    (stage / "out/recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    for path, content in recipes.virtual_environment().items():
        target = stage / "overlay" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            target.symlink_to(content.removeprefix("-> "))
        else:
            target.write_text(content)


def _install_packages(recipe: recipes.Recipe, overlay: pathlib.Path, say: Say) -> None:
    site = overlay / PYTHON_IN_HOST.lstrip("/") / SITE_PACKAGES
    wheels.install(recipe.requirements, site, lambda command: _run(command, "pip", say), ARCHES[recipe.arch])
    shutil.rmtree(site / "bin", ignore_errors=True)  # commands of the packages: use python -m
    (site / "aiovmm-project.pth").write_text(f"{PROJECT_IN_HOST}\n")


def _make_disk(recipe: recipes.Recipe, stage: pathlib.Path, say: Say) -> None:
    env = {
        **os.environ,
        "PATH": f"{os.environ.get('PATH', os.defpath)}:{SBIN}",
        "TMPDIR": str(stage),
        "ARCH": recipe.arch,
        "CROSS": ARCHES[recipe.arch].cross,
        "PYTHON_VERSION": PYTHON_VERSION,
        "SITE": f"{PYTHON_IN_HOST}/{SITE_PACKAGES}",
        "PYTHON": _python(recipe, stage),
        "HOST_KERNEL": recipes.HOST_KERNEL,
        "BOOT_MODULES": " ".join(recipe.boot_modules),
    }
    command = recipes.mmdebstrap_command(recipe, stage, apt_settings())
    _run(command, "mmdebstrap", say, env=env, given=debian_sources(recipe.suite))


def _python(recipe: recipes.Recipe, stage: pathlib.Path) -> str:
    """The words that run, in `stage`, a Python of the image's version for this machine; none where the image's own runs."""
    if not recipe.foreign:
        return ""
    try:
        Archive(recipe.suite, stage / "apt-python").unpack_with_dependencies(
            [f"python{PYTHON_VERSION}"], stage / "python"
        )
    except ArchiveError as error:
        raise BuildFailed(f"no Python {PYTHON_VERSION} to compile with: {error}") from error
    return shlex.join(
        [
            "env",
            f"PYTHONHOME={stage}/python/usr",
            *Unpacked(stage / "python").command(f"usr/bin/python{PYTHON_VERSION}"),
        ]
    )


def debian_sources(suite: str) -> str:
    """sources.list lines of Debian's `suite`, with its source packages. BuildFailed if there are none."""
    try:
        lines = sources(suite)
    except NoSources as error:
        raise BuildFailed(str(error)) from error
    return "".join(f"deb {line}\ndeb-src {line}\n" for line in lines)


def _finish_boot_files(recipe: recipes.Recipe, out: pathlib.Path) -> None:
    order = load_order((out / "modules.dep").read_text(), list(recipe.boot_modules))
    for directory in (out, out / "boot"):  # the hook, maybe a stranger, is done
        directory.chmod(0o755)
    names = [path.rsplit("/", 1)[-1] for path in order]
    (out / "boot/order").write_text("".join(f"{name}\n" for name in names))
    absent = [name for name in names if not (out / "boot" / name).exists()]
    if absent:
        raise BuildFailed(f"the kernel package lacks {', '.join(absent)}")


def _run(command: list[str], what: str, say: Say, *, env: dict[str, str] | None = None, given: str = "") -> None:
    """Run a step, saying its own `kvmhost:` lines; BuildFailed with its last words if it fails."""
    words: list[str] = []
    with subprocess.Popen(
        command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(given)
        process.stdin.close()
        for line in process.stdout:
            words = [*words[-30:], line.rstrip()]
            if line.startswith("kvmhost: "):
                say(line.removeprefix("kvmhost: ").rstrip())
    if process.returncode:
        raise BuildFailed(f"{what} failed with status {process.returncode}:\n" + "\n".join(words))


def _prune(newest: Image, recipe: recipes.Recipe) -> None:
    images = sorted(newest.directory.parent.glob("[0-9a-f]" * 16), key=lambda path: path.stat().st_mtime)
    others = [path for path in images if path != newest.directory and _arch_of(path) == recipe.arch]
    for old in others[: -(_KEPT_IMAGES - 1)]:
        shutil.rmtree(old)


def _arch_of(image: pathlib.Path) -> str:
    try:
        return str(json.loads((image / "recipe.json").read_text())["arch"])
    except (OSError, ValueError, KeyError):
        return "x86_64"  # older than there were others
