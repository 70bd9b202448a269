"""Devices' ids: a chosen one is kept, a made one is nobody's, and the usual one wherever that is free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import (
    BalloonConfig,
    ConfigError,
    ConsoleConfig,
    ConsoleMode,
    DeviceConfig,
    DiskConfig,
    FsConfig,
    GenericVhostUserConfig,
    NetConfig,
    PayloadConfig,
    PmemConfig,
    RngConfig,
    RtcConfig,
    VMConfig,
    VsockConfig,
    WatchdogConfig,
)
from aiovmm.config.ids import LISTS, SINGLE, device_ids, numbered_id, single_id
from aiovmm.config.placed import PlacedConfig
from aiovmm.machine.hotplug.configured import free_id, pinned, with_device
from aiovmm.snapshot.configuration import from_state, to_state

HERE = Path("/here")


def a_disk(id_: str | None) -> DiskConfig:
    return DiskConfig(path=HERE, id=id_)


MANY: dict[str, Callable[[str | None], PlacedConfig]] = {
    "disks": a_disk,
    "nets": lambda id_: NetConfig(id=id_),
    "pmems": lambda id_: PmemConfig(file=HERE, id=id_),
    "fs": lambda id_: FsConfig(tag="t", socket=HERE, id=id_),
    "devices": lambda id_: DeviceConfig(path=HERE, id=id_),
    "generic_vhost_user": lambda id_: GenericVhostUserConfig(device_type=4, socket=HERE, queue_sizes=(64,), id=id_),
}
ONE: dict[str, Callable[[str | None], PlacedConfig]] = {
    "console": lambda id_: ConsoleConfig(ConsoleMode.NULL, id=id_),
    "rng": lambda id_: RngConfig(id=id_),
    "vsock": lambda id_: VsockConfig(id=id_),
    "balloon": lambda id_: BalloonConfig(size=0, id=id_),
    "watchdog": lambda id_: WatchdogConfig(id=id_),
    "rtc": lambda id_: RtcConfig(id=id_),
}
LIKELY = [f"{name}{n}" for name in LISTS.values() for n in range(4)] + [*SINGLE, "rng0", "iommu", "mem", "custom0", "a"]
CHOSEN = st.none() | st.sampled_from(LIKELY)


@st.composite
def configs(draw: st.DrawFn) -> VMConfig:
    """Any number of devices, some with ids of which no two are the same, which are mostly those that would be made."""
    taken: set[str] = set()

    def chosen() -> str | None:
        id_ = draw(CHOSEN)
        if id_ in taken:
            return None
        taken.update(() if id_ is None else (id_,))
        return id_

    fields: dict[str, object] = {}
    for field in draw(st.permutations([*MANY, *ONE])):
        if field in MANY:
            if field != "devices" or "balloon" not in fields:
                fields[field] = tuple(MANY[field](chosen()) for _ in range(draw(st.integers(0, 4))))
        elif (field != "balloon" or not fields.get("devices")) and draw(st.booleans()):
            fields[field] = ONE[field](chosen())
    return VMConfig(PayloadConfig(HERE), **fields)  # type: ignore[arg-type]


def described(config: VMConfig) -> list[tuple[str, str | None, str]]:
    """(what it is called if that is free, the chosen id, the id) of each device."""
    found = []
    for field, ids in device_ids(config).items():
        items: tuple[PlacedConfig, ...] = getattr(config, field) if field in LISTS else (getattr(config, field),)
        for number, (item, id_) in enumerate(zip(items, ids, strict=True)):
            found.append((f"{LISTS[field]}{number}" if field in LISTS else field, item.id, id_))
    return found


@given(configs())
def test_no_two_have_the_same_and_chosen_ones_are_kept(config: VMConfig) -> None:
    rows = described(config)
    assert len({id_ for *_, id_ in rows}) == len(rows)
    for usual, chosen, id_ in rows:
        assert id_ == chosen if chosen is not None else usual in config.chosen_ids or id_ == usual


@given(configs())
def test_a_snapshot_has_them_and_so_has_what_is_pinned(config: VMConfig) -> None:
    ids = device_ids(config)
    assert device_ids(from_state(to_state(config))) == ids
    assert device_ids(pinned(config, lambda _id: None)) == ids


@given(configs(), st.data())
def test_one_that_comes_later_has_nobodys(config: VMConfig, data: st.DataObject) -> None:
    config = pinned(config, lambda _id: None)
    kinds = {**MANY, **{field: made for field, made in ONE.items() if field not in device_ids(config)}}
    if config.devices:
        kinds.pop("balloon", None)
    if config.balloon is not None:
        del kinds["devices"]
    field = data.draw(st.sampled_from(sorted(kinds)))
    placed = kinds[field](None)
    id_ = free_id(placed, config.chosen_ids)
    assert id_ not in config.chosen_ids
    after = device_ids(with_device(config, kinds[field](id_)))
    assert after == {**device_ids(config), field: (*device_ids(config).get(field, ()), id_)}


def test_the_usual_ones() -> None:
    config = VMConfig(PayloadConfig(HERE), disks=(a_disk(None), a_disk(None)), nets=(NetConfig(),))
    assert device_ids(config) == {"disks": ("disk0", "disk1"), "nets": ("net0",), "rng": ("rng",)}


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        ((None, "disk0"), ("disk1", "disk0")),
        (("disk1", None), ("disk1", "disk0")),
        ((None, None, "disk0"), ("disk2", "disk1", "disk0")),
        (("disk1", "disk0", None, None), ("disk1", "disk0", "disk2", "disk3")),
        ((None, None, "disk1", "disk0"), ("disk2", "disk3", "disk1", "disk0")),
    ],
)
def test_the_next_that_is_free(chosen: tuple[str | None, ...], ids: tuple[str, ...]) -> None:
    config = VMConfig(PayloadConfig(HERE), disks=tuple(map(a_disk, chosen)), rng=None)
    assert device_ids(config)["disks"] == ids


def test_names_of_those_there_is_one_of() -> None:
    assert single_id("rng", ()) == "rng"
    assert single_id("rng", ("rng", "rng0")) == "rng1"
    assert numbered_id("net", ("net0", "net2")) == "net1"


def test_a_chosen_one_that_two_have_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^net\.id: 'disk0' names two devices$"):
        VMConfig(PayloadConfig(HERE), disks=(a_disk("disk0"),), nets=(NetConfig(id="disk0"),))
