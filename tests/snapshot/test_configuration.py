"""Configurations as plain data, and which of them go with a guest's machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import (
    BalloonConfig,
    ConfigError,
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    DiskConfig,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    PlatformConfig,
    RateLimitGroupConfig,
    RebootPolicy,
    SnapshotError,
    VMConfig,
    VsockConfig,
)
from aiovmm.config.cpus import TopologyConfig
from aiovmm.snapshot.configuration import changed, from_state, named, to_state
from aiovmm.snapshot.document import decode, encode
from tests.at_limits import NUMBERS

FULL = VMConfig(
    PayloadConfig(Path("/boot/vml\udcffinuz"), Path("initrd"), "console=ttyS0"),
    CpusConfig(4, 8, TopologyConfig(2, 2, 1, 2), affinity=((0, (1, 2)),), features=("amx",)),
    MemoryConfig(1 << 30, thp=True),
    console=ConsoleConfig(ConsoleMode.FILE, Path("/tmp/out"), id="hvc"),
    disks=(DiskConfig(path=Path("/a"), serial="x", rate_limit_group="g"), DiskConfig(path=Path("/b"), readonly=True)),
    nets=(NetConfig(mac="2e:00:00:00:00:01", fd=(5,)), NetConfig(passt=True)),
    vsock=VsockConfig(cid=7, connect_timeout=0.1),
    balloon=BalloonConfig(size=1 << 20),
    rate_limit_groups=(RateLimitGroupConfig(id="g", bw_size=1 << 20),),
    platform=PlatformConfig(2),
    on_reboot=RebootPolicy.RESTART,
    name="full",
)


def test_it_comes_back_as_it_was() -> None:
    assert from_state(decode(encode(to_state(FULL)))) == FULL
    small = VMConfig(PayloadConfig(Path("k")), rng=None)
    assert from_state(to_state(small)) == small


@pytest.mark.parametrize("value", [10**4000, "9" * 4_000_000, "\x1b" * 100_000], ids=["number", "text", "spelt"])
def test_a_value_as_long_as_it_likes_makes_no_message_of_that_length(value: int | str) -> None:
    state = decode(encode(to_state(FULL)))
    for name in ("memory", "disks", "name"):
        with pytest.raises((ConfigError, SnapshotError)) as refused:
            from_state({**state, name: value})
        assert len(str(refused.value)) <= 2000, name
        assert str(refused.value).isprintable(), name


def places(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


STATE = to_state(FULL)
ODD: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.text(max_size=5) | st.binary(max_size=5)
)
ODD |= st.sampled_from([[], {}]) | st.sampled_from(NUMBERS)


@given(st.sampled_from(places(STATE)), ODD)
def test_what_is_none_is_refused_by_name(place: tuple[Any, ...], odd: Any) -> None:
    state = decode(encode(STATE))
    inner: Any = state
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = odd
    with suppress(SnapshotError):
        assert isinstance(from_state(state), VMConfig)


def test_a_field_that_nobody_knows_is_refused() -> None:
    with pytest.raises(SnapshotError, match=r"config\.cpus has fields that this version does not know: 'cores'"):
        from_state({**STATE, "cpus": {"cores": 1}})


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("memory.size", {"memory": MemoryConfig(2 << 30)}),
        ("cpus.boot", {"cpus": CpusConfig(2, 8, FULL.cpus.topology, features=("amx",))}),
        ("serial", {"serial": ConsoleConfig(ConsoleMode.OFF)}),
        ("console", {"console": ConsoleConfig(ConsoleMode.OFF)}),
        ("the number of disks", {"disks": ()}),
        (r"nets\[0\].num_queues", {"nets": (NetConfig(num_queues=4), NetConfig())}),
        (
            r"disks\[0\].pci_device_id",
            {"disks": (DiskConfig(path=Path("/a"), pci_device_id=3), DiskConfig(path=Path("/b")))},
        ),
        ("vsock", {"vsock": None}),
        ("platform", {"platform": PlatformConfig(3)}),
    ],
)
def test_what_the_guest_has_seen_stays(option: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{option}: cannot (become|go)"):
        changed(FULL, changes)


def test_what_comes_or_goes_is_called_that() -> None:
    """And not by what the comparison made of it."""
    with pytest.raises(ConfigError, match="vsock: cannot go: the guest has seen it"):
        changed(FULL, {"vsock": None})
    with pytest.raises(ConfigError, match="vsock: cannot come: the guest has seen that there is none"):
        changed(FULL.with_changes({"vsock": None}), {"vsock": VsockConfig()})


def test_what_it_cannot_see_may_change() -> None:
    new = changed(
        FULL,
        {"name": "b", "vsock": VsockConfig(cid=9), "disks": (DiskConfig(path=Path("/c")), DiskConfig(path=Path("/d")))},
    )
    assert (new.name, new.vsock.cid, new.disks[1].path) == ("b", 9, Path("/d"))  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="no such field"):
        changed(FULL, {"disk": ()})


@pytest.mark.parametrize("name", ["another", "ü" * 32, "x" * 64])
def test_a_name_alone_is_changed_as_all_else_is(name: str) -> None:
    config = VMConfig(PayloadConfig(Path("k")), disks=(DiskConfig(path=Path("d")),), name="first")
    assert named(config, name) == config.with_changes({"name": name})
    assert config.name == "first"
    assert named(named(config, name), "first") == config


@pytest.mark.parametrize("name", ["", "x" * 65, "ü" * 33, "a\0b", "\ud800", 7, None])
def test_a_name_that_cannot_be_is_refused_in_the_same_words(name: Any) -> None:
    config = VMConfig(PayloadConfig(Path("k")))
    with pytest.raises(ConfigError) as as_others:
        config.with_changes({"name": name})
    with pytest.raises(ConfigError) as alone:
        named(config, name)
    assert str(alone.value) == str(as_others.value)
