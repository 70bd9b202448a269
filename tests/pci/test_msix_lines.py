"""MSI-X vectors: messages that are sent at once, and lines of others, which are programmed in a thread while the guest masks and
opens them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import HostError
from aiovmm.pci.msix import ENTRY_SIZE, MsixTable
from aiovmm.pci.msix_lines import MsixTableRegisters, MsixVectors
from aiovmm.pci.services import LineChange, Place
from aiovmm.runtime.worker import Worker
from aiovmm.testing.pci import RecordingServices
from tests.limits import HANGS

ADDRESS = 0xFEE0_0000


class Lines:
    """Four vectors, and the guest's side of their table. While `may_go` is not set the machine's thread stands still."""

    def __init__(self) -> None:
        self.services = RecordingServices(None)  # type: ignore[arg-type]  # nothing here reaches memory
        self.services.worker = self.worker = Worker("lines")
        self.vectors = MsixVectors(MsixTable(4), self.services, "device", Place())
        self.table = MsixTableRegisters(self.vectors)
        self.may_go = threading.Event()

    async def program(self, vector: int, *, masked: bool, wait: bool = True) -> None:
        entry = b"".join(word.to_bytes(4, "little") for word in (ADDRESS, 0, 0x40 + vector))
        for offset in (0, 4, 8):
            self.table.write(vector * ENTRY_SIZE + offset, entry[offset : offset + 4])
        pending = self.table.write(vector * ENTRY_SIZE + 12, int(masked).to_bytes(4, "little"))
        if pending is not None and wait:
            await pending

    async def settle(self) -> None:
        await self.worker.submit(lambda: None)

    def stand_still(self) -> None:
        self.worker.submit(lambda: self.may_go.wait(HANGS))

    def messages(self) -> list[int]:
        """What the guest has got, the eventfds of other processes included; no order between these and ours."""
        for line in self.services.lines:
            if not line.closed:
                line.collect()
        others = [message for line in self.services.lines for message in line.messages]
        return [data for _, data in self.services.messages + others]


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    lines = Lines()
    lines.vectors.apply(lines.vectors.table.set_control(enabled=True, masked=False))
    yield lines
    lines.may_go.set()
    if (pending := lines.vectors.close()) is not None:
        await pending
    await lines.worker.aclose()
    assert all(line.closed for line in lines.services.lines)


async def test_a_vector_that_only_we_signal_costs_no_descriptor_and_asks_nothing_of_the_host(lines: Lines) -> None:
    lines.stand_still()  # nothing that is asked of it would be done
    for vector in range(4):
        await lines.program(vector, masked=False)
        lines.vectors.pulse(vector)
    await lines.program(1, masked=True)
    for _ in range(3):
        lines.vectors.pulse(1)
    assert lines.messages() == [0x40, 0x41, 0x42, 0x43]
    assert lines.vectors.pending_bits()[0] == 1 << 1
    await lines.program(1, masked=False)
    assert lines.messages() == [0x40, 0x41, 0x42, 0x43, 0x41]
    assert lines.vectors.pending_bits()[0] == 0
    assert lines.services.lines == []


async def test_who_gets_the_eventfd_of_a_masked_vector_cannot_reach_the_guest(lines: Lines) -> None:
    """Not even before the machine's thread has done anything, though the vector was open once."""
    await lines.program(1, masked=False)
    await lines.program(1, masked=True)
    lines.stand_still()
    fd = lines.vectors.share(1)
    assert fd is not None
    os.eventfd_write(fd, 1)
    assert lines.messages() == []
    assert lines.vectors.pending_bits()[0] == 1 << 1
    lines.may_go.set()
    await lines.program(1, masked=False)
    assert lines.messages() == [0x41]
    assert lines.vectors.share(1) == fd, "whoever has it keeps it"


async def test_what_comes_through_an_eventfd_before_its_line_is_joined_waits_in_it(lines: Lines) -> None:
    await lines.program(1, masked=False)
    lines.stand_still()
    fd = lines.vectors.share(1)
    assert fd is not None
    os.eventfd_write(fd, 1)
    lines.vectors.pulse(1)
    assert lines.messages() == [0x41], "ours, which needs no line"
    lines.may_go.set()
    await lines.settle()
    assert lines.messages() == [0x41, 0x41]
    await lines.program(1, masked=True)
    os.eventfd_write(fd, 1)
    assert lines.messages() == [0x41, 0x41]


async def test_a_line_that_the_host_refuses_keeps_no_other_from_its_message(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lines.services.set_lines

    def refuse(changes: Sequence[LineChange]) -> None:
        if any(change.data == 0x42 for change in changes):
            raise HostError("allocating an interrupt route", 28)
        real(changes)

    monkeypatch.setattr(lines.services, "set_lines", refuse)
    lines.vectors.apply(lines.vectors.table.set_control(enabled=True, masked=True))
    for vector in range(4):
        await lines.program(vector, masked=False)
    fds = [lines.vectors.share(vector) for vector in range(4)]
    opened = lines.vectors.apply(lines.vectors.table.set_control(enabled=True, masked=False))  # all at once
    for fd in fds:
        os.eventfd_write(fd or -1, 1)
    assert opened is not None
    await asyncio.wait([asyncio.ensure_future(opened)])
    await lines.settle()
    assert sorted(lines.messages()) == [0x40, 0x41, 0x43]


async def test_a_line_that_the_host_refuses_while_its_vector_is_open_is_told_of(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Exception] = []
    refusal = HostError("allocating an interrupt route", 28)

    def refuse(changes: Sequence[LineChange]) -> None:
        raise refusal

    monkeypatch.setattr(lines.services, "set_lines", refuse)
    vectors = MsixVectors(MsixTable(1), lines.services, "device", Place(), told.append)
    vectors.apply(vectors.table.set_control(enabled=True, masked=False))
    vectors.apply(vectors.table.write_table(12, bytes(4)))
    vectors.share(0)
    await lines.settle()
    assert told == [refusal]
    if (pending := vectors.close()) is not None:
        await pending


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "mask", "pulse", "pulse", "share", "signal", "function", "all", "go"]),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_interrupt_is_lost_and_none_passes_a_mask(steps: list[tuple[str, int]]) -> None:
    asyncio.run(play(steps))


async def play(steps: list[tuple[str, int]]) -> None:
    """Against a model: what is due of each vector, by our messages and by others' signals, which may take until `go`."""
    lines = Lines()
    table = lines.vectors.table
    lines.vectors.apply(table.set_control(enabled=True, masked=False))
    sent, pending, signalled, fds = [0] * 4, [False] * 4, [False] * 4, [-1] * 4
    got_of_others = [0] * 4
    for step, vector in [*steps, ("all", 0), *(("open", v) for v in range(4)), ("go", 0)]:
        if step in ("open", "mask"):
            await lines.program(vector, masked=step == "mask", wait=step == "mask")
        elif step == "pulse":
            masked = table.route(vector).masked
            sent[vector] += not masked
            pending[vector] |= masked
            lines.vectors.pulse(vector)
        elif step == "share":
            fds[vector] = lines.vectors.share(vector) or -1
        elif step == "signal" and fds[vector] >= 0:
            os.eventfd_write(fds[vector], 1)
            signalled[vector] = True
        elif step in ("function", "all"):
            lines.vectors.apply(table.set_control(enabled=True, masked=step == "function"))
            await lines.settle()
        for v in range(4):
            if pending[v] and not table.route(v).masked:
                pending[v] = False
                sent[v] += 1
        if step == "go":
            await lines.settle()
            lines.messages()
            for v in range(4):
                if signalled[v] and not table.route(v).masked:
                    signalled[v] = False
                    got_of_others[v] += 1
        ours = [data for _, data in lines.services.messages]
        assert [ours.count(0x40 + v) for v in range(4)] == sent
        bits = lines.vectors.pending_bits()[0]
        for v in range(4):
            if not table.route(v).masked:
                continue
            if signalled[v] and not bits >> v & 1:  # its line was joined for a moment before it was masked
                signalled[v] = False
                got_of_others[v] += 1
            assert bool(bits >> v & 1) == (pending[v] or signalled[v])
        others = [data for line in lines.services.lines for _, data in line.messages]
        assert all(others.count(0x40 + v) >= got_of_others[v] for v in range(4))
    assert not any(pending)
    assert not any(signalled)
    if (closed := lines.vectors.close()) is not None:
        await closed
    await lines.worker.aclose()
    assert all(line.closed for line in lines.services.lines)
