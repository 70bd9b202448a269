"""The QEMU command line, sizes, profiles and directories, and the lock that makes users queue."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.kvmhost.command import NOT_THE_NEWEST_KERNEL, BootFiles, machine_name, qemu_command
from tests.kvmhost.errors import KvmHostError, MissingTool
from tests.kvmhost.initramfs import build
from tests.kvmhost.iommufd import IommufdImage
from tests.kvmhost.lock import HostLock, holder
from tests.kvmhost.machine import Machine
from tests.kvmhost.qemu import Qemu
from tests.kvmhost.settings import PROJECT, Size, cache_directory, default_size, parse_size, profile_named

GIB = 1 << 30
FILES = BootFiles(pathlib.Path("/i/vmlinuz"), pathlib.Path("/h/initramfs"), pathlib.Path("/i/disk.img"))


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_machine_emulates_amd_v_and_leaves_the_image_alone() -> None:
    command = qemu_command(Qemu(), profile_named(), Size(2, 8 * GIB), FILES)
    assert option(command, "-accel") == "tcg,thread=multi"
    assert option(command, "-cpu") == "max"
    assert option(command, "-m") == "8192M"
    assert "snapshot=on" in option(command, "-drive")
    assert "-daemonize" in command


def test_the_vfio_profile_has_an_iommu_and_a_drive_to_pass_through() -> None:
    command = qemu_command(Qemu(), profile_named("vfio"), Size(1, GIB), FILES)
    assert option(command, "-M") == "q35,kernel-irqchip=off"
    assert "intel-iommu,intremap=off,caching-mode=on" in command
    assert "nvme,drive=nvme,serial=kvmhost-nvme" in command
    assert option(command, "-append").endswith("intel_iommu=on iommu=nopt")


def test_the_iommufd_profile_is_booted_by_a_kernel_of_its_own(tmp_path: pathlib.Path) -> None:
    """Its drivers ride in the initramfs, and are loaded in their order; the disk is the image's."""
    image = IommufdImage(tmp_path / "image", tmp_path / "kernel")
    assert (image.disk, image.kernel) == (tmp_path / "image/disk.img", tmp_path / "kernel/vmlinuz")
    (image.boot / "drivers").mkdir(parents=True)
    for name in ("busybox", "virtio_blk.ko", "drivers/iommufd.ko"):
        (image.boot / name).write_bytes(name.encode())
    (image.boot / "order").write_text("virtio_blk.ko\n")
    (image.boot / "drivers/order").write_text("iommufd.ko allow_unsafe_interrupts=1\n")
    archive = build(image.boot, profile_named("iommufd"))
    for part in (
        b"kvmhost/drivers/iommufd.ko\0",
        b"iommufd.ko allow_unsafe_interrupts=1\n",
        b"modules/virtio_blk.ko\0",
    ):
        assert part in archive
    shutil.rmtree(image.boot / "drivers")
    assert b"kvmhost/drivers" not in build(image.boot, profile_named("vfio")).replace(b"/run/kvmhost/drivers", b"")
    vfio, iommufd = (qemu_command(Qemu(), profile_named(kind), Size(1, GIB), FILES) for kind in ("vfio", "iommufd"))
    assert {word for word in vfio if word.startswith(("nvme", "intel-iommu", "vmxnet3", "virtio-net"))} <= set(iommufd)


def test_devices_to_pass_through_are_the_same_on_arm64_behind_its_own_iommu() -> None:
    x86 = qemu_command(Qemu(), profile_named("vfio"), Size(1, GIB), FILES)
    arm64 = qemu_command(Qemu(), profile_named("vfio", "aarch64"), Size(1, GIB), FILES)
    assert option(arm64, "-M") == "virt,virtualization=on,gic-version=3,iommu=smmuv3"
    assert {word for word in x86 if "mac=" in word or word.startswith("nvme")} <= set(arm64)
    assert not [word for word in arm64 if "intel" in word]


def test_a_host_in_an_old_qemu_tells_the_tests_inside() -> None:
    old = qemu_command(Qemu(notice="the machine's own"), profile_named(), Size(1, GIB), FILES)
    assert option(old, "-append").endswith(f" {NOT_THE_NEWEST_KERNEL}")
    assert NOT_THE_NEWEST_KERNEL not in option(
        qemu_command(Qemu(), profile_named("vfio"), Size(1, GIB), FILES), "-append"
    )


def test_the_arm64_machine_has_el2_and_an_its() -> None:
    command = qemu_command(Qemu(("qemu-system-aarch64",)), profile_named(arch="aarch64"), Size(2, GIB), FILES)
    assert command[0] == "qemu-system-aarch64"
    assert option(command, "-M") == "virt,virtualization=on,gic-version=3"
    assert option(command, "-cpu") == "max"
    assert "console=ttyAMA0" in option(command, "-append").split()
    other = profile_named(arch="aarch64", processor="cortex-a72")
    assert option(qemu_command(Qemu(), other, Size(2, GIB), FILES), "-cpu") == "cortex-a72"


def test_each_host_has_a_name_and_so_a_place_of_its_own() -> None:
    profiles = [
        profile_named(),
        profile_named("vfio"),
        profile_named(arch="aarch64"),
        profile_named(arch="aarch64", processor="cortex-a72"),
        profile_named("vfio", "aarch64"),
        profile_named("iommufd"),
    ]
    names = ["default", "vfio", "aarch64", "aarch64-cortex-a72", "aarch64-vfio", "iommufd"]
    assert [one.name for one in profiles] == names
    assert profile_named(arch="aarch64", processor="max") == profiles[2]


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(KvmHostError, match="of x86_64; there are default, vfio"):
        profile_named("nosuch")
    with pytest.raises(KvmHostError, match="there are x86_64, aarch64"):
        profile_named(arch="riscv64")
    with pytest.raises(KvmHostError, match="of aarch64; there are max, cortex-a72"):
        profile_named(arch="aarch64", processor="host")


@pytest.mark.parametrize(
    ("cpus", "memory", "env", "size"),
    [
        (2, 24 * GIB, {}, Size(3, 8 * GIB)),
        (64, 512 * GIB, {}, Size(4, 8 * GIB)),
        (1, 7 * GIB, {}, Size(3, 3 * GIB)),
        (8, 24 * GIB, {"AIOVMM_KVMHOST_CPUS": "1", "AIOVMM_KVMHOST_MEMORY": "512M"}, Size(1, GIB // 2)),
    ],
)
def test_size_follows_the_machine_or_the_environment(cpus: int, memory: int, env: dict[str, str], size: Size) -> None:
    assert default_size(cpus, memory, env) == size


def test_a_size_that_is_none_is_refused() -> None:
    assert parse_size("2g") == 2 * GIB
    with pytest.raises(KvmHostError, match="write it like"):
        parse_size("lots")


def test_the_cache_is_where_the_environment_says() -> None:
    assert cache_directory({"AIOVMM_CACHE": "/a"}) == pathlib.Path("/a/kvmhost")
    assert cache_directory({"XDG_CACHE_HOME": "/b"}) == pathlib.Path("/b/aiovmm/kvmhost")
    assert cache_directory({}) == pathlib.Path.home() / ".cache/aiovmm/kvmhost"


def test_missing_tools_come_with_the_command_that_installs_them() -> None:
    error = MissingTool({"mke2fs": "e2fsprogs", "depmod": "kmod"})
    assert str(error).endswith("run: apt-get install --no-install-recommends e2fsprogs kmod")


def test_a_process_id_that_another_process_has_now_is_not_the_host(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path, profile_named())
    assert machine.pid() is None
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")
    assert machine.pid() is None


def test_a_second_user_waits_and_is_told_for_whom(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import pathlib, sys; from tests.kvmhost.lock import HostLock\n"
        "with HostLock(pathlib.Path(sys.argv[1]), lambda text: print(text, flush=True)): print('mine', flush=True)"
    )
    with HostLock(path, print) as lock, lock:
        assert f"process {os.getpid()}" in holder(path)
        second = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, cwd=PROJECT
        )
        assert second.stdout is not None
        assert f"held by process {os.getpid()}" in second.stdout.readline()
    with second:
        assert second.stdout.readline() == "mine\n"
    assert second.returncode == 0
    assert holder(path) == ""


def test_a_host_that_comes_first_has_real_time_threads(tmp_path: pathlib.Path) -> None:
    profile = profile_named("default")
    machine = Machine(tmp_path, profile)
    assert not machine.come_first()  # none runs
    try_it = "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"
    may = subprocess.run([sys.executable, "-c", try_it], stderr=subprocess.DEVNULL).returncode == 0
    code = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(9e5,)).start()\nprint(flush=1)"
    with subprocess.Popen([sys.executable, "-c", code, machine_name(profile)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            (tmp_path / "pid").write_text(str(process.pid))
            assert machine.come_first() == may
            policies = {os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{process.pid}/task")}
            assert policies == ({os.SCHED_RR} if may else {os.sched_getscheduler(0)})
        finally:
            process.kill()
