"""Stock Debian kernels under aiovmm, inside the nested host."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from aiovmm import CpusConfig, MemoryConfig, PayloadConfig, VMConfig
from aiovmm.image import build_initramfs
from tests.kvmhost.command import NOT_THE_NEWEST_KERNEL
from tests.system.debian import bring_debian
from tests.system.grounds import host_of, hosts_of, is_core, is_more_of_the_same, is_of_x86
from tests.system.guest import SLOWER
from tests.system.programs import compile_programs
from tests.system.shown import CONSOLE

GUESTS = Path("/guest")
RELEASES = ("6.1", "6.12", "newest")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop alone: a boot costs ten seconds, and which loop turns matters to the units, which run on both."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize(
        "host", hosts_of(metafunc.module.__file__.rsplit("/", 1)[-1], metafunc.function.__name__), indirect=True
    )


@pytest.fixture(autouse=True)
def host(request: pytest.FixtureRequest) -> str:
    """The nested host: x86_64, or the processor of one of arm64."""
    return str(request.param)


@pytest.hookimpl(tryfirst=True)  # before the plugin that hands them over looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items[:] = [
        item for item in items if here not in item.path.parents or not (is_of_x86(item) or is_more_of_the_same(item))
    ]
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kvmhost)
            _set_limit(item)
            if not is_core(item):
                item.add_marker(pytest.mark.thorough)
    compile_programs()  # before the nested host, which has no compiler, gets the tree
    if any(item.path.name == "test_readers.py" for item in items):
        bring_debian()


def _set_limit(item: pytest.Item) -> None:
    """After what time a test hangs, if it does not say itself: on arm64 later, as all that it waits for."""
    own = item.get_closest_marker("timeout")
    seconds = own.args[0] if own is not None else 240
    item.add_marker(pytest.mark.timeout(seconds if host_of(item) == "x86_64" else seconds * SLOWER), append=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The newest kernel may be missing, and with an old QEMU around the nested host it does not boot."""
    if "newest" in getattr(item, "callspec", item).__dict__.get("params", {}).values():
        if not (GUESTS / "newest").exists():
            pytest.skip(
                "no newest kernel: Debian's archive could not be reached (python -m tests.kvmhost build --force)"
            )
        if NOT_THE_NEWEST_KERNEL in Path("/proc/cmdline").read_text():
            pytest.skip("no newest kernel: the nested host runs in an old QEMU (python -m tests.kvmhost build --force)")


class OnDemand(dict[str, Path]):
    """A file for each kernel release, made when the first test wants it: most want one of them."""

    def __init__(self, make: Callable[[str], Path]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, release: str) -> Path:
        self[release] = path = self._make(release)
        return path


def with_libraries(program: str) -> dict[str, Path]:
    """A program of the host's and all that it is linked with, as `files` of an initramfs."""
    libraries = re.findall(r"(/\S+) \(0x", subprocess.check_output(["ldd", program], text=True))
    return {path: Path(path).resolve() for path in (program, *libraries)}


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An initramfs with a shell for each kernel release."""

    def make(release: str) -> Path:
        path = tmp_path_factory.mktemp("initramfs") / f"{release}.cpio"
        path.write_bytes(build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules").data)
        return path

    return OnDemand(make)


@pytest.fixture(scope="session")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernels of the bzImages, unpacked: ELF files."""

    from aiovmm.boot.x86_64 import load_kernel

    def make(release: str) -> Path:
        image = load_kernel(GUESTS / release / "vmlinuz")
        path = tmp_path_factory.mktemp("vmlinux") / f"{release}.elf"
        view = memoryview(bytearray(image.source.size))
        image.source.read_into([(0, view)])
        path.write_bytes(view)
        return path

    return OnDemand(make)


@pytest.fixture(scope="session")
def with_mke2fs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Initramfs images that have the host's mke2fs."""
    files = {"/etc/mke2fs.conf": Path("/etc/mke2fs.conf"), **with_libraries("/sbin/mkfs.ext4")}

    def make(release: str) -> Path:
        path = tmp_path_factory.mktemp("mke2fs") / f"{release}.cpio"
        modules = GUESTS / release / "modules"
        path.write_bytes(build_initramfs(busybox=GUESTS / "bin/busybox", modules=modules, files=files).data)
        return path

    return OnDemand(make)


class Guests:
    """Makes configurations of guests that boot to a shell on their serial port."""

    def __init__(self, initramfs: dict[str, Path], vmlinux: dict[str, Path]) -> None:
        self._initramfs = initramfs
        self._vmlinux = vmlinux

    def config(
        self,
        release: str = "6.1",
        *,
        elf: bool = False,
        cpus: int = 1,
        features: tuple[str, ...] = (),
        memory: int = 256,
        cmdline: str = f"console={CONSOLE} panic=-1 quiet",
        **changes: object,
    ) -> VMConfig:
        """A VMConfig; `memory` in MiB."""
        kernel = self._vmlinux[release] if elf else GUESTS / release / "vmlinuz"
        config = VMConfig(
            PayloadConfig(kernel, self._initramfs[release], cmdline),
            cpus=CpusConfig(cpus, features=features),
            memory=MemoryConfig(memory << 20),
            name="guest",
        )
        return replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture
def guests(initramfs: dict[str, Path], vmlinux: dict[str, Path]) -> Guests:
    return Guests(initramfs, vmlinux)


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a real file system."""
    path = Path(tempfile.mkdtemp(prefix="vhost_user", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def drive() -> Iterator[Path]:
    """An NVMe drive's directory in sysfs, vfio-pci its driver; nvme again afterwards."""
    from tests.system.nvme import taken_drive

    with taken_drive() as device:
        yield device
