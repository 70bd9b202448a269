"""Numbers of a VM as plain data: they come back as they were, also by way of JSON, and what is none is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.devices.virtio.blk import BlkCounters
from aiovmm.devices.virtio.blk.counters import Latency
from aiovmm.devices.virtio.net import NetCounters
from aiovmm.devices.virtio.vsock import VsockCounters
from aiovmm.errors import SnapshotError, printable
from aiovmm.kvm.vcpu import VcpuCounters
from aiovmm.lifecycle import VMState
from aiovmm.stats import ConsoleStats, DeviceStats, LoopStats, VMStats
from aiovmm.stats.plain import from_state, to_state
from aiovmm.virtqueue.config import QueueCounters
from tests.test_pool_frames import PLAIN

COUNT = st.integers(0, (1 << 64) - 1)
NAME = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=256)
SECONDS = st.floats(0, 1e9)


def counters(cls: Any, **others: Any) -> st.SearchStrategy[Any]:
    return st.builds(
        cls, **{name: COUNT for name in (field.name for field in fields(cls)) if name not in others}, **others
    )


LATENCY = st.builds(Latency, COUNT, SECONDS, SECONDS, SECONDS)
DEVICE = st.builds(
    DeviceStats,
    st.lists(counters(QueueCounters), max_size=3).map(tuple),
    st.none() | counters(BlkCounters, read_latency=LATENCY, write_latency=LATENCY),
    st.none() | counters(NetCounters),
    st.none() | counters(VsockCounters),
)
STATS = st.builds(
    VMStats,
    NAME,
    st.sampled_from(VMState),
    SECONDS,
    COUNT,
    st.lists(counters(VcpuCounters), max_size=3).map(tuple),
    st.dictionaries(NAME, DEVICE, max_size=3),
    COUNT,
    COUNT,
    st.none() | st.builds(LoopStats, COUNT, SECONDS, SECONDS, SECONDS, st.dictionaries(NAME, COUNT, max_size=3), COUNT),
    st.dictionaries(NAME, counters(ConsoleStats), max_size=2),
    SECONDS,
)


@given(STATS)
def test_they_come_back_as_they_were(stats: VMStats) -> None:
    assert from_state(json.loads(json.dumps(to_state(stats)))) == stats


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


@given(STATS, st.data())
def test_what_is_none_is_refused_or_is_one(stats: VMStats, data: st.DataObject) -> None:
    state: Any = json.loads(json.dumps(to_state(stats)))
    *way, last = data.draw(st.sampled_from(places(state)[1:]))
    inner = state
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(PLAIN | st.floats())
    with suppress(SnapshotError):
        assert to_state(from_state(state)) == tamed(state)


def tamed(state: Any) -> Any:
    """Names are somebody's labels, and can be printed."""
    if isinstance(state, list):
        return [tamed(item) for item in state]
    return {printable(name[:256]): tamed(item) for name, item in state.items()} if isinstance(state, dict) else state


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("uptime", float("nan")),
            ("memory", -1),
            ("memory", 1 << 64),
            ("uptime", 10**400),
            ("memory", True),
            ("memory", "1"),
            ("vcpus", {}),
            ("state", "lost"),
        ),
        *(("loop", 7), ("devices", {"disk0": {}}), ("vm", None), ("vcpus", [None]), ("consoles", {"serial": []})),
    ],
)
def test_a_field_that_is_wrong_is_named(field: str, value: Any) -> None:
    state = to_state(VMStats("g", VMState.RUNNING, 0.0, 1, (), {}, 0, 0, None, {}, 0.0))
    assert from_state(state).vm == "g"
    with pytest.raises(SnapshotError, match=f"stats.{field}"):
        from_state(state | {field: value})


def test_fields_that_are_missing_or_unknown() -> None:
    state = to_state(VMStats("g", VMState.RUNNING, 0.0, 1, (), {}, 0, 0, None, {}, 0.0))
    with pytest.raises(SnapshotError, match=r"does not know: '\\x1b\[2J', 'later'"):  # nothing that a terminal obeys
        from_state(state | {"later": 1, "\x1b[2J": 1})
    del state["memory"]
    with pytest.raises(SnapshotError, match="memory is missing"):
        from_state(state)
    with pytest.raises(SnapshotError, match="stats"):
        from_state([])
