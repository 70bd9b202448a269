"""A worker has given up what its guests are not served by, and they are served all the same."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    BalloonConfig,
    Confinement,
    ConsoleConfig,
    DiskConfig,
    ImageError,
    LandlockRuleConfig,
    NetConfig,
    PayloadConfig,
    PmemConfig,
    Pool,
    Seccomp,
    VMConfig,
    VsockConfig,
)
from aiovmm.errors import ConfigError, HostError, StateError, UsageError
from aiovmm.native import ffi, lib
from aiovmm.pool.workers import process
from tests.confine.tried import FOREIGN_RINGS
from tests.everybodys import everybodys
from tests.vm.remains import Remains
from tests.vm.test_pool import guests, lives
from tests.vm.test_pool_workers import children, pid_of

needs_landlock = pytest.mark.skipif(lib.avmm_landlock_version() < 0, reason="this kernel has no Landlock")
LANDLOCK = Confinement(landlock=True)
NAMESPACES = Confinement(namespaces=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or unprivileged user namespaces")

FILE: dict[Confinement | None, str] = {LANDLOCK: os.strerror(13), NAMESPACES: os.strerror(2)}
"""What comes of opening one that is not configured."""

TRIES = (
    FOREIGN_RINGS
    + """
import os, socket
from aiovmm.errors import StateError
from aiovmm.pool.workers import answers

def tried(call):
    try:
        call()
    except OSError as exc:
        return os.strerror(exc.errno)
    return "done"

async def tries(*_):
    outcomes = {
        "execute": tried(lambda: os.posix_spawn("/bin/true", ["true"], {})),
        "network": tried(lambda: socket.socket(socket.AF_INET)),
        "signal": tried(lambda: os.kill(os.getppid(), 0)),
        "file": tried(lambda: open("/etc/shadow").read()),
        "here": tried(lambda: os.listdir("HERE")),
        "module": tried(lambda: __import__("colorsys")),
        "rings": str(len(foreign_rings())),
        "disks": str(sum(map(len, __import__("aiovmm.devices.virtio.blk.rings").devices.virtio.blk.rings._rings.values()))),
    }
    raise StateError("; ".join(map(": ".join, outcomes.items())))

answers.ANSWERS["pause"] = tries
main(int"""
)


def has_rings() -> bool:
    """Whether the host lets anybody have an io_uring."""
    ring = ffi.new("struct avmm_uring *")
    error = lib.avmm_uring_open(ring, 1, 1)
    lib.avmm_uring_close(ring)
    return not error


def with_all(place: Path) -> VMConfig:
    """Devices of each kind that needs nobody else."""
    (place / "disk").write_bytes(bytes(1 << 20))
    (place / "pmem").write_bytes(bytes(2 << 20))
    changes: dict[str, Any] = {
        "disks": (DiskConfig(path=place / "disk", readonly=True),),
        "pmems": (PmemConfig(file=place / "pmem", discard_writes=True),),
        "vsock": VsockConfig(),
        "balloon": BalloonConfig(size=0),
        "console": ConsoleConfig(),
    }
    return guests("he").with_changes(changes)


async def outcomes(vm: VM) -> dict[str, str]:
    with pytest.raises(StateError) as info:
        await vm.pause()
    return dict(re.findall(r"(\w+): ([^;]+)", str(info.value)))


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = process._PROGRAM.replace("main(int", TRIES, 1).replace("HERE", str(tmp_path))
    monkeypatch.setattr(process, "_PROGRAM", program)


@pytest.mark.usefixtures("tries")
@pytest.mark.parametrize(
    "confinement",
    [
        None,
        Confinement(),
        pytest.param(LANDLOCK, marks=needs_landlock),
        pytest.param(NAMESPACES, marks=needs_root),
    ],
    ids=["default", "calls", "paths", "mounts"],
)
async def test_a_worker_can_do_little_and_its_guests_all(confinement: Confinement | None, tmp_path: Path) -> None:
    remains, before = await Remains.once_loop_has_streams(), children()
    async with Pool(with_all(tmp_path), max=2, workers=1, confinement=confinement) as pool:
        async with pool.acquire() as vm, pool.acquire() as other:
            for each in (vm, other):
                await each.serial.expect(rb"hello\n", 20)
                await lives(each)
            found = await outcomes(vm)
            assert found["execute"] == found["network"] == found["signal"] == os.strerror(1)
            assert found["file"] == FILE.get(confinement, "done")
            assert found["here"] == (os.strerror(13) if confinement is LANDLOCK else "done")
            assert found["module"] == "done"
            assert (found["rings"], found["disks"]) == ("0", str(int(has_rings())))
            status = status_of(pid_of(vm))
            assert "NoNewPrivs:\t1" in status
            assert "Seccomp:\t2" in status
        async with pool.acquire() as again:  # it is made when all that has long been given up
            await lives(again)
    assert children() == before
    await remains.check()


@pytest.mark.usefixtures("tries")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_a_worker_of_root_becomes_somebody_else() -> None:
    """It has /dev/kvm, which is root's here."""
    remains, before = await Remains.once_loop_has_streams(), children()
    config, somebody = guests("he"), Confinement(user="4321:8765")
    with everybodys(config.payload.kernel) as kernel:
        config = replace(config, payload=replace(config.payload, kernel=kernel))
        async with Pool(config, max=2, workers=1, confinement=somebody) as pool:
            for _ in range(2):
                async with pool.acquire() as vm:
                    await lives(vm)
                    found = await outcomes(vm)
                    assert (found["file"], found["module"]) == (os.strerror(13), "done")
                    status = dict(re.findall(r"(\w+):[ \t]*(.*)", status_of(pid_of(vm))))
                    assert set(status["Uid"].split()) == {"4321"}
                    assert set(status["Gid"].split()) == {"8765"}
                    assert (status["Groups"], int(status["CapEff"], 16), int(status["CapPrm"], 16)) == ("", 0, 0)
    assert children() == before
    await remains.check()


@pytest.mark.usefixtures("tries")
async def test_it_can_be_left_out() -> None:
    allowed = Confinement(seccomp=Seccomp.ALLOWED)
    async with Pool(guests(), max=1, workers=1, confinement=allowed) as pool, pool.acquire() as vm:
        found = await outcomes(vm)
        assert (found.pop("rings"), found.pop("disks")) == ("1", "0")
        assert set(found.values()) == {"done"}


@needs_landlock
@pytest.mark.usefixtures("tries")
async def test_a_rule_gives_a_path_more(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rule = LandlockRuleConfig(path=tmp_path, access="rw")
    confinement = Confinement(landlock=True, rules=(rule,))
    async with Pool(guests(), max=1, workers=1, confinement=confinement) as pool, pool.acquire() as vm:
        assert (await outcomes(vm))["here"] == "done"
        await vm.snapshot(tmp_path / "in" / "there")
        assert (tmp_path / "in" / "there").is_dir()


@needs_landlock
async def test_what_is_not_named_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    async with Pool(guests(), max=1, workers=1, confinement=LANDLOCK) as pool, pool.acquire() as vm:
        with pytest.raises(HostError, match="Permission denied"):
            await vm.add(DiskConfig(path=tmp_path / "disk"), timeout=0)
        with pytest.raises(HostError, match="Permission denied"):
            await vm.snapshot(tmp_path / "there")
        await lives(vm)


async def test_a_tap_is_made_where_the_configuration_has_one() -> None:
    with_net = guests().with_changes({"nets": (NetConfig(),)})
    if not os.access("/dev/net/tun", os.W_OK) or os.geteuid():
        pytest.skip("no TAP may be made here")
    async with Pool(with_net, max=1, workers=1) as pool, pool.acquire() as vm:
        await lives(vm)
    async with Pool(guests(), max=1, workers=1) as pool, pool.acquire() as vm:
        with pytest.raises(ConfigError, match="given up what a TAP is set up with"):
            await vm.add(NetConfig(), timeout=0)
        with pytest.raises(ConfigError, match="served by passt"):
            await vm.add(NetConfig(passt=True, num_queues=2), timeout=0)
        await lives(vm)


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


async def used(pool: Pool) -> None:
    async with pool.acquire() as vm:
        await lives(vm)


async def test_programs_that_none_may_start_are_refused_by_name(tmp_path: Path) -> None:
    with_passt = guests().with_changes({"nets": (NetConfig(passt=True),)})
    async with Pool(with_passt, max=1, workers=1) as pool:
        with pytest.raises(ConfigError, match="net0 is served by passt"):
            await used(pool)
    (tmp_path / "disk.vhdx").write_bytes(b"vhdxfile".ljust(1 << 20, b"\0"))
    with_qemu = guests().with_changes({"disks": (DiskConfig(path=tmp_path / "disk.vhdx"),)})
    async with Pool(with_qemu, max=1, workers=1) as pool:
        with pytest.raises(ConfigError, match="disk0 is served by qemu-storage-daemon"):
            await used(pool)


async def test_a_worker_that_cannot_be_confined_leaves_nothing(tmp_path: Path) -> None:
    remains, before = await Remains.once_loop_has_streams(), children()
    rule = LandlockRuleConfig(path=tmp_path / "none", access="r")
    for _ in range(2):
        async with Pool(guests(), max=1, workers=2, confinement=Confinement(landlock=True, rules=(rule,))) as pool:
            with pytest.raises((ConfigError, HostError), match=r"there is no|no Landlock"):
                await used(pool)
    assert children() == before
    await remains.check()


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "rules of nothing": (lambda: Confinement(rules=(LandlockRuleConfig(path=Path("/"), access="r"),)), "landlock=True"),
    "a word": (lambda: Confinement(seccomp="true"), "Seccomp.REFUSED"),  # type: ignore[arg-type]
    "an access": (lambda: LandlockRuleConfig(path=Path("/"), access="x"), "no access"),
    "nobody": (lambda: Confinement(user="nosuchuser"), "there is no user 'nosuchuser'"),
    "no workers": (lambda: Pool(guests(), confinement=Confinement()), "this process keeps its rights"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_what_cannot_be_is_said(what: str) -> None:
    make, said = WRONG[what]
    with pytest.raises(UsageError, match=re.escape(said)):
        make()


async def test_an_error_of_a_confined_worker_is_the_guests(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel" * 100)
    wrong = guests().with_changes({"payload": PayloadConfig(kernel)})
    confinement = LANDLOCK if lib.avmm_landlock_version() >= 0 else Confinement()
    async with Pool(wrong, max=2, workers=1, confinement=confinement) as pool:
        with pytest.raises(ImageError, match="kernel"):
            await used(pool)
