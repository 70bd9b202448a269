"""What goes between a pool and its workers: frames in pieces of any size, errors and ends as plain data, and what is neither."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import DiskConfig, PayloadConfig, VMConfig, errors
from aiovmm.errors import PeerError, SnapshotError, UsageError
from aiovmm.lifecycle import ExitReason, ExitStatus
from aiovmm.pool.workers.frames import FROM_POOL, FROM_WORKER, MOST_DATA, Decoder, encode
from aiovmm.pool.workers.plain import error_of, error_to_state, status_of, status_to_state
from aiovmm.pool.workers.remote_changes import RemoteChanges
from aiovmm.runtime.plain import Fields
from aiovmm.snapshot.configuration import to_state

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
MESSAGES = st.tuples(st.dictionaries(st.text(), PLAIN, max_size=4).map(lambda m: m | {"op": "x"}), st.binary())


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_as_they_were_sent_whatever_the_pieces(messages: list[tuple[Any, bytes]], sizes: list[int]) -> None:
    stream = b"".join(encode(message, data) for message, data in messages)
    decoder, came, i = Decoder(), list[tuple[Any, bytes]](), 0
    while stream:
        size = sizes[i % len(sizes)]
        came += decoder.feed(stream[:size])
        stream, i = stream[size:], i + 1
    assert came == messages


@given(st.binary(max_size=200))
def test_garbage_is_a_peer_error_or_waits_for_more(data: bytes) -> None:
    with suppress(PeerError):
        for message, _ in Decoder().feed(data):
            assert isinstance(message["op"], str)


@pytest.mark.parametrize(
    "text",
    [b"", b"[1]", b"{}", b'{"op": 1}', b"\xff", b"[" * 100_000],
    ids=["none", "list", "no op", "op", "no text", "deep"],
)
def test_a_message_that_is_none(text: bytes) -> None:
    with pytest.raises(PeerError, match="a frame w"):
        list(Decoder().feed(struct.pack("<II", len(text), 0) + text))


def of_parts(count: int) -> bytes:
    return b'{"op":"x","a":[' + b",".join([b"[]"] * (count // 2)) + b"]}"


def test_what_a_worker_says_is_smaller_than_what_it_is_told() -> None:
    """It may be a guest's, and what it says is made out on the pool's loop."""
    decoder = Decoder(FROM_WORKER)
    fits = b'{"op":"x","a":"' + b"x" * (FROM_WORKER.size - 17) + b'"}'
    assert len(fits) == FROM_WORKER.size
    assert [m["op"] for m, _ in decoder.feed(struct.pack("<II", len(fits), 0) + fits)] == ["x"]
    with pytest.raises(PeerError, match="at most"):
        list(Decoder(FROM_WORKER).feed(struct.pack("<II", FROM_WORKER.size + 1, 0)))
    assert [m["op"] for m, _ in Decoder(FROM_WORKER).feed(frame(of_parts(FROM_WORKER.parts - 100)))] == ["x"]
    many = frame(of_parts(FROM_WORKER.parts + 100))
    with pytest.raises(PeerError, match="values: at most"):
        list(Decoder(FROM_WORKER).feed(many))
    assert [m["op"] for m, _ in Decoder().feed(many)] == ["x"]
    with pytest.raises(UsageError, match="too much"):
        encode({"op": "x", "a": [[]] * FROM_WORKER.parts}, bound=FROM_WORKER)


def frame(text: bytes) -> bytes:
    return struct.pack("<II", len(text), 0) + text


@pytest.mark.parametrize("sizes", [(FROM_POOL.size + 1, 0), (2, MOST_DATA + 1)])
def test_a_frame_that_is_too_large_is_refused_before_it_is_there(sizes: tuple[int, int]) -> None:
    with pytest.raises(PeerError, match="at most"):
        list(Decoder().feed(struct.pack("<II", *sizes)))


def test_one_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(UsageError, match="too much between a pool and a worker"):
        encode({"op": "x"}, bytes(MOST_DATA + 1))


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError("cpus.boot", "is none", "say 1"),
        errors.ImageError("/kernel", "is no kernel", "take another"),
        errors.StateError("not now"),
        errors.UsageError("never"),
        errors.SnapshotError("damaged"),
        errors.HostError("open the TAP", 16, "close it", "/dev/net/tun"),
        errors.KvmError("KVM_RUN", 5),
        errors.HotplugTimeout("disk0", "is in use"),
        errors.PeerError("garbled"),
        KeyError("there is no disk0"),
        TimeoutError("too late"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_the_same_at_the_other_end(error: Exception) -> None:
    made = error_of(json.loads(json.dumps(error_to_state(error))))
    assert (type(made), str(made), vars(made)) == (type(error), str(error), vars(error))


def test_any_other_error_is_told_by_its_name() -> None:
    made = error_of(error_to_state(ZeroDivisionError("by nothing")))
    assert (type(made), str(made)) == (errors.AiovmmError, "ZeroDivisionError: by nothing")


@given(PLAIN)
def test_what_is_no_end_is_refused(state: Any) -> None:
    with pytest.raises(SnapshotError):
        status_of(state)


@given(st.sampled_from(sorted(["ConfigError", "KvmError", "KeyError", "Exit", ""])), PLAIN)
def test_what_is_no_error_is_refused_or_one_of_ours(kind: str, values: Any) -> None:
    with suppress(SnapshotError):
        assert isinstance(error_of({"kind": kind, "with": values}), Exception)


@pytest.mark.parametrize("reason", list(ExitReason))
def test_ends(reason: ExitReason) -> None:
    assert status_of(status_to_state(ExitStatus(reason, "so"))) == ExitStatus(reason, "so")


def test_a_configuration_of_more_devices_than_are_coming_is_not_looked_at() -> None:
    """Each takes 40 us of the pool's loop."""
    known = VMConfig(PayloadConfig(Path("k")), disks=(DiskConfig(path=Path("a")),))
    coming = [DiskConfig(path=Path(f"{n}")) for n in range(19)]
    vm: Any = SimpleNamespace(_config=known, _coming=coming)
    state = to_state(known)
    disk = state["disks"][0]
    assert RemoteChanges._told_config(vm, Fields({"config": state}, "x")) == known
    disks = [disk, *({**disk, "path": f"{n}"} for n in range(5000))]
    assert len(RemoteChanges._told_config(vm, Fields({"config": {**state, "disks": disks[:20]}}, "x")).disks) == 20
    with pytest.raises(SnapshotError, match="asked to have"):
        RemoteChanges._told_config(vm, Fields({"config": {**state, "disks": disks}}, "x"))
