"""MSI-X vectors whose lines are programmed in a thread, while the guest masks, opens and shares them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from aiovmm.errors import HostError
from aiovmm.pci.msix import ENTRY_SIZE, MsixTable
from aiovmm.pci.msix_lines import MsixTableRegisters, MsixVectors
from aiovmm.pci.services import LineChange
from aiovmm.runtime.worker import Worker
from aiovmm.testing.pci import RecordingServices

ADDRESS = 0xFEE0_0000


class Lines:
    """Four vectors, and the guest's side of their table. While `may_go` is not set the machine's thread stands still."""

    def __init__(self) -> None:
        self.services = RecordingServices(None)  # type: ignore[arg-type]  # nothing here reaches memory
        self.services.worker = self.worker = Worker("lines")
        self.vectors = MsixVectors(MsixTable(4), self.services, "device")
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
        self.worker.submit(lambda: self.may_go.wait(30))

    def messages(self) -> list[int]:
        """What the guest has got, the eventfds of other processes included."""
        for line in self.services.lines:
            if not line.closed:
                line.collect()
        return [data for line in self.services.lines for _, data in line.messages]


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


async def test_who_gets_the_eventfd_of_a_masked_vector_cannot_reach_the_guest(lines: Lines) -> None:
    """Not even before the machine's thread has done anything: the vector was open once, and its line stayed as it was."""
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


async def test_a_vector_that_was_shared_while_it_opens_stays_as_it_is(lines: Lines) -> None:
    lines.stand_still()
    await lines.program(1, masked=False, wait=False)
    fd = lines.vectors.share(1)
    assert fd is not None
    os.eventfd_write(fd, 1)
    lines.may_go.set()
    await lines.settle()
    assert lines.messages() == [0x41]
    await lines.program(1, masked=True)
    os.eventfd_write(fd, 1)
    assert lines.messages() == [0x41]


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
    opened = lines.vectors.apply(lines.vectors.table.set_control(enabled=True, masked=False))  # all at once
    for vector in range(4):
        lines.vectors.pulse(vector)
    assert opened is not None
    await asyncio.wait([asyncio.ensure_future(opened)])
    await lines.settle()
    assert sorted(lines.messages()) == [0x40, 0x41, 0x43]
