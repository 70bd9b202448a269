"""The package as users get it: one abi3 wheel, with everything in it, that boots a stock kernel from where pip puts it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from aiovmm.agent import agent_binary
from tests.kvmhost import Host

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(directory), str(ROOT)], check=True, capture_output=True, timeout=300)
    (built,) = directory.glob("*.whl")
    return built


@pytest.mark.timeout(300)
def test_the_wheel_is_abi3_and_whole(wheel: Path) -> None:
    assert "-cp311-abi3-linux" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "aiovmm").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in names
    assert {"aiovmm/py.typed", "aiovmm/image/init.sh", "aiovmm/native/_native.abi3.so"} <= names
    assert f"aiovmm/agent/bin/{agent_binary().name}" in names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "examples/"))]


@pytest.fixture(scope="module")
def installed(wheel: Path, kvmhost_unlocked: Host) -> str:
    """The interpreter of a virtual environment in the nested host that has the wheel and nothing else of the project."""
    return kvmhost_unlocked.install(wheel)


@pytest.mark.timeout(900)
def test_the_installed_command_boots_a_kernel(installed: str, kvmhost: Host) -> None:
    aiovmm = installed.replace("/bin/python", "/bin/aiovmm")
    kvmhost.run([aiovmm, "doctor"], cwd="/", timeout=60).check()
    make = [
        aiovmm,
        "image",
        "initramfs",
        "/tmp/i.cpio",
        "--busybox",
        "/guest/bin/busybox",
        "--modules",
        "/guest/6.1/modules",
    ]
    kvmhost.run([*make, "--run", "echo it is $(uname -r)"], cwd="/", timeout=60).check()
    run = [aiovmm, "run", "--kernel", "/guest/6.1/vmlinuz", "--initramfs", "/tmp/i.cpio", "--memory", "256M", "--json"]
    done = kvmhost.run([*run, "--serial", "tty", "--cmdline", "console=ttyS0 quiet"], cwd="/", timeout=120).check()
    assert b"it is 6.1." in done.stdout
    assert b'"event": "stopped"' in done.stderr
    assert b'"reason": "shutdown"' in done.stderr


BOOT = r"""
import asyncio, pathlib, sys
import aiovmm
from aiovmm.boot.x86_64 import load_kernel
from aiovmm.image import build_initramfs

async def main(guest, elf):
    kernel, initramfs = guest / "vmlinuz", pathlib.Path("/tmp/installed.cpio")
    initramfs.write_bytes(build_initramfs(busybox=pathlib.Path("/guest/bin/busybox"), modules=guest / "modules").data)
    if elf:
        source = load_kernel(kernel).source
        image = bytearray(source.size)
        source.read_into([(0, memoryview(image))])
        kernel = pathlib.Path("/tmp/installed.elf")
        kernel.write_bytes(image)
    print("kernel", kernel.read_bytes()[:4])
    payload = aiovmm.PayloadConfig(kernel, initramfs, "console=ttyS0 panic=-1 quiet")
    async with aiovmm.VM(aiovmm.VMConfig(payload)) as vm:
        await vm.start()
        await vm.serial.expect(rb"guest:\S+ ?[#$] ", timeout=120)
        vm.serial.write(b"echo it is $(uname -r)\n")
        found = await vm.serial.expect(rb"it is (\d\S+)\s", timeout=60)
        vm.serial.write(b"poweroff\n")
        print("guest", found[1].decode(), (await vm.wait()).reason.value)

print("package", aiovmm.__file__)
asyncio.run(main(pathlib.Path(sys.argv[1]), sys.argv[2] == "vmlinux"))
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("release", "image"),
    [
        ("6.12", "vmlinux"),
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in (("6.1", "bzImage"), ("6.1", "vmlinux"))),
        pytest.param("6.12", "bzImage", marks=pytest.mark.thorough),
    ],
)
def test_the_installed_package_boots_a_kernel_to_a_shell(
    installed: str, kvmhost: Host, release: str, image: str
) -> None:
    done = kvmhost.run([installed, "-c", BOOT, f"/guest/{release}", image], cwd="/", timeout=200).check()
    said = dict(line.split(" ", 1) for line in done.stdout.decode().splitlines())
    assert said["package"].startswith(installed.removesuffix("bin/python"))
    assert (said["kernel"] == r"b'\x7fELF'") == (image == "vmlinux")
    assert said["guest"].startswith(f"{release}.")
    assert said["guest"].endswith(" shutdown")
