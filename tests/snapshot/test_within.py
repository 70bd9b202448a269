"""A snapshot that others have made, restored `within` a directory, has nothing of the host opened that is elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    ConfigError,
    ConsoleConfig,
    ConsoleMode,
    DebugConsoleConfig,
    DeviceConfig,
    DiskConfig,
    FsConfig,
    GenericVhostUserConfig,
    MemoryConfig,
    MemoryZoneConfig,
    NetConfig,
    PayloadConfig,
    PlatformConfig,
    PmemConfig,
    RebootPolicy,
    RngConfig,
    SnapshotError,
    Template,
    VMConfig,
    VsockConfig,
)
from aiovmm.cli.restore import Restore, parse_restore
from aiovmm.config.disk import ImageType
from aiovmm.runtime.dataclass import field_types, replace
from aiovmm.snapshot.configuration import _inner
from aiovmm.snapshot.directory import STATE
from aiovmm.snapshot.document import decode, encode
from aiovmm.snapshot.within import Within
from tests.snapshot.test_trust import put
from tests.vm.guest import config, counts_on

NAMES = Path("names")
"""Below the bound."""

NAMES_NOTHING = """
cpus.features cpus.affinity disk.serial disk.queue_affinity disk.rate_limit_group fs.tag generic_vhost_user.queue_sizes
device.x_exclude_mmap_bars memory_zone.id numa.cpus numa.distances numa.memory_zones numa.pci_segments numa.device_id
payload.cmdline platform.iommu_segments platform.serial_number platform.uuid platform.oem_strings platform.system_manufacturer
platform.system_product_name platform.system_version platform.system_serial_number platform.system_uuid
platform.system_sku_number platform.system_family platform.chassis_asset_tag rate_limit_group.id vm.name
net.ip net.mask net.mac net.host_mac net.guest_ip
"""
"""Text and numbers that nothing is opened by; addresses are of interfaces, which are refused."""

IS_LOOKED_AT = "net.tap net.fd"


def kinds(cls: type) -> Iterator[type]:
    yield cls
    for annotation in field_types(cls).values():
        if (inner := _inner(cls, annotation)) is not None:
            yield from kinds(inner)


def test_every_text_of_a_configuration_is_known_to_name_nothing_of_the_host() -> None:
    """A field that is added and does is to be looked at in snapshot/within.py; paths are without being named there."""
    found = set()
    for cls in kinds(VMConfig):
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__.removesuffix("Config"))[1:]
        name = {"v_m": "vm"}.get(name, name)
        for field, annotation in field_types(cls).items():
            if ("str" in annotation or "tuple[" in annotation or "Path" not in annotation) and (
                ("str" in annotation or "tuple[int" in annotation or "tuple[tuple" in annotation) and field != "id"
            ):
                found.add(f"{name}.{field}")
    known = set(NAMES_NOTHING.split()) | set(IS_LOOKED_AT.split())
    assert {field for field in found if field not in known} == set()


def bare(**fields: Any) -> VMConfig:
    return VMConfig(PayloadConfig(Path("/boot/vmlinuz")), **fields)


OUTSIDE: dict[str, Any] = {
    "disks[0].path": bare(disks=(DiskConfig(path=Path("/etc/shadow"), readonly=True),)),
    "disks[0].overlay": bare(disks=(DiskConfig(path=NAMES, overlay=Path("/tmp/overlay")),)),
    "disks[0].backing_files": bare(disks=(DiskConfig(path=NAMES, image_type=ImageType.QCOW2, backing_files=True),)),
    "disks[0].socket": bare(disks=(DiskConfig(vhost_user=True, socket=Path("/run/back-end")),)),
    "disks[1].path": bare(disks=(DiskConfig(path=NAMES), DiskConfig(path=NAMES / "../../outside"))),
    "pmems[0].file": bare(pmems=(PmemConfig(file=Path("/etc/shadow")),)),
    "fs[0].socket": bare(fs=(FsConfig(tag="t", socket=Path("/run/virtiofsd")),)),
    "generic_vhost_user[0].socket": bare(
        generic_vhost_user=(GenericVhostUserConfig(device_type=7, socket=Path("/run/x"), queue_sizes=(16,)),)
    ),
    "nets[0]": bare(nets=(NetConfig(),)),
    "nets[0] is passt": bare(nets=(NetConfig(passt=True),)),
    "nets[0] is descriptors": bare(nets=(NetConfig(fd=(5,)),)),
    "nets[0].socket": bare(nets=(NetConfig(vhost_user=True, socket=Path("/run/net")),)),
    "devices[0]": bare(devices=(DeviceConfig(path=Path("/sys/bus/pci/devices/0000:00:1f.0")),)),
    "platform.iommufd_fd": bare(platform=PlatformConfig(iommufd=True, iommufd_fd=5)),
    "vsock.socket": bare(vsock=VsockConfig(socket=Path("/run/docker"))),
    "serial.path": bare(serial=ConsoleConfig(ConsoleMode.FILE, Path("/etc/profile.d/x.sh"))),
    "console.path": bare(console=ConsoleConfig(ConsoleMode.SOCKET, Path("/run/x"))),
    "debug_console.path": bare(debug_console=DebugConsoleConfig(ConsoleMode.FILE, Path("/root/.bashrc"))),
    "rng.src": bare(rng=RngConfig(src=Path("/etc/shadow"))),
    "memory_zones[0].file": bare(
        memory=MemoryConfig(0), memory_zones=(MemoryZoneConfig(id="a", file=Path("/dev/mem")),)
    ),
    "payload.kernel": bare(on_reboot=RebootPolicy.RESTART),
    "payload.initramfs": VMConfig(PayloadConfig(NAMES, Path("/etc/shadow")), on_panic=RebootPolicy.RESTART),
}


@pytest.mark.parametrize("field", OUTSIDE)
def test_what_is_elsewhere_is_refused_by_its_name(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = OUTSIDE[field]
    with pytest.raises(SnapshotError, match=field.replace("[", r"\[").replace("]", r"\]")) as refused:
        Within(tmp_path).check(Path("s"), saved, saved)
    assert str(refused.value).count(";") == 1 + (field == "devices[0]"), "nothing else of it is"


@pytest.mark.parametrize("field", OUTSIDE)
def test_what_whoever_restores_gives_is_his(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = field.partition(".")[0].partition("[")[0]
    there = getattr(OUTSIDE[field], name)
    given = tuple(replace(item) for item in there) if isinstance(there, tuple) else replace(there)
    Within(tmp_path).check(Path("s"), OUTSIDE[field], replace(OUTSIDE[field], **{name: given}))


def test_what_is_inside_is_not(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    (tmp_path / "link").symlink_to("disk")
    saved = bare(
        disks=(DiskConfig(path=tmp_path / "disk"), DiskConfig(path=tmp_path / "link", overlay=tmp_path / "made")),
        serial=ConsoleConfig(ConsoleMode.FILE, tmp_path / "serial"),
        console=ConsoleConfig(ConsoleMode.PTY),
        vsock=VsockConfig(socket=tmp_path / "vsock"),
        nets=(NetConfig(vhost_user=True, socket=tmp_path / "net"),),
    )
    Within(tmp_path).check(Path("s"), saved, saved)
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    Within(tmp_path / "elsewhere").check(Path("s"), saved, saved)
    with pytest.raises(ConfigError, match="no directory"):
        Within(tmp_path / "disk")


def test_links_devices_and_pipes_lead_nowhere(tmp_path: Path) -> None:
    bound = tmp_path / "bound"
    bound.mkdir()
    (bound / "out").symlink_to("/etc/shadow")
    (bound / "up").symlink_to(tmp_path)
    (bound / "dangling").symlink_to(tmp_path / "is made there")
    os.mkfifo(bound / "pipe")
    within = Within(bound)
    for name in ("out", "up/bound", "up/other", "dangling", "pipe", "../boundary"):
        allowed = name == "up/bound"
        assert within.allows(bound / name) is allowed, name
    assert not within.allows(Path("/"))
    assert Within(Path("/")).allows(Path("/etc/shadow"))


def test_a_port_of_a_vsock_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    saved = bare(vsock=VsockConfig(socket=tmp_path / "vsock"))
    (tmp_path / "vsock_note").symlink_to("/etc/shadow")
    Within(tmp_path).check(Path("s"), saved, saved)
    (tmp_path / "vsock_5000").symlink_to("/run/docker.sock")
    with pytest.raises(SnapshotError, match=r"vsock\.socket"):
        Within(tmp_path).check(Path("s"), saved, saved)


# -- guests


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """What is opened, or listened at, meanwhile."""
    found: list[str] = []
    _LISTENING.append(found)
    try:
        yield found
    finally:
        _LISTENING.remove(found)


_LISTENING: list[list[str]] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _LISTENING and event in ("open", "socket.bind", "socket.connect", "os.mkdir", "os.rename", "os.remove"):
        for found in _LISTENING:
            found += [os.fsdecode(arg) for arg in args if isinstance(arg, (str, bytes, os.PathLike))]


@pytest.fixture(scope="module")
def audit() -> None:
    """It cannot be taken away again."""
    sys.addaudithook(_hear)


def made(place: Path) -> None:
    place.mkdir()
    (place / "disk").write_bytes(bytes(1 << 20))


async def foreign(place: Path) -> dict[str, Any]:
    """A snapshot that has all that it names beside it."""
    made(place)
    changes: dict[str, Any] = {
        "disks": (DiskConfig(path=place / "disk"),),
        "serial": ConsoleConfig(ConsoleMode.FILE, place / "serial"),
        "vsock": VsockConfig(socket=place / "vsock"),
    }
    async with VM(config("s", **changes)) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(place / "s")
    return decode((place / "s" / STATE).read_bytes())


CHANGES: tuple[tuple[tuple[Any, ...], Any], ...] = (
    (("config", "disks", 0, "path"), "{out}"),
    (("config", "serial", "path"), "{out}"),
    (("config", "vsock", "socket"), "{out}"),
    (("config", "on_reboot"), "restart"),
)


@pytest.mark.kvm
@pytest.mark.usefixtures("kvm_there", "audit")
async def test_nothing_outside_is_touched(tmp_path: Path) -> None:
    place, out = tmp_path / "foreign", tmp_path / "out"
    state = await foreign(place)
    async with VM.restore(place / "s", within=place) as vm:
        await vm.resume()
        await counts_on(vm)
    for where, value in CHANGES:
        (place / "s" / STATE).write_bytes(encode(put(state, where, value.format(out=out))))
        with opened_files() as opened:
            with pytest.raises(SnapshotError, match=r"only what is below .*foreign"):
                async with VM.restore(place / "s", within=place):
                    pass
            with pytest.raises(SnapshotError, match=r"only what is below .*foreign"):
                Restore.of(arguments(f"source_url=file://{place}/s,within={place}"))
        assert [path for path in opened if path.startswith(str(out))] == []
        assert not out.exists()
    async with VM.restore(place / "s", within=place, overrides={"on_reboot": RebootPolicy.EXIT}) as vm:
        await vm.resume()
        await counts_on(vm)


@pytest.mark.kvm
@pytest.mark.usefixtures("kvm_there")
async def test_a_template_is_bounded_too(tmp_path: Path) -> None:
    """Forks have consoles and sockets of their own, and no template's."""
    place = tmp_path / "foreign"
    state = await foreign(place)
    changed = put(put(state, ("config", "serial", "path"), "/out"), ("config", "vsock", "socket"), "/out")
    (place / "s" / STATE).write_bytes(encode(changed))
    async with await Template.open(place / "s", within=place) as template, template.fork("one") as vm:
        await vm.resume()
        await counts_on(vm)
    (place / "s" / STATE).write_bytes(encode(put(state, ("config", "disks", 0, "path"), str(tmp_path / "other"))))
    with pytest.raises(SnapshotError, match=r"disks\[0\]\.path"):
        await Template.open(place / "s", within=place)


@pytest.mark.kvm
@pytest.mark.usefixtures("kvm_there", "audit")
async def test_the_snapshots_that_it_is_over_are_below_it_too(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "others", track=True)
        (tmp_path / "bound").mkdir()
        await vm.snapshot(tmp_path / "bound" / "s", base=tmp_path / "others")
    with opened_files() as opened, pytest.raises(SnapshotError, match=r"over the snapshot at .*others"):
        async with VM.restore(tmp_path / "bound" / "s", within=tmp_path / "bound"):
            pass
    assert [path for path in opened if "others" in path] == []
    async with VM.restore(tmp_path / "bound" / "s", within=tmp_path) as vm:
        await vm.resume()
        await counts_on(vm)


def arguments(restore: str) -> dict[str, Any]:
    return {"restore": restore, "serial": None, "console": None, "name": "vm"}


def test_the_command_line_says_it() -> None:
    assert parse_restore("source_url=file:///s,within=/srv/g").within == Path("/srv/g")
    assert parse_restore("source_url=file:///s").within is None
    with pytest.raises(ConfigError, match=r"restore\.within"):
        parse_restore("source_url=file:///s,within=")
