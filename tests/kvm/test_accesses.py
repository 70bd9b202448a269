"""Every kind of access and policy, as the guest and its devices see them."""

from __future__ import annotations

import asyncio

from aiovmm.bus import Range, Space
from aiovmm.kvm import Kvm
from tests.guests.machine import MMIO, Access, Machine, Recorder
from tests.limits import HANGS

RESULTS = 0x60000


async def test_every_width_of_port_and_memory_access(kvm: Kvm) -> None:
    async with Machine("sizes", kvm=kvm) as m:
        m.start()
        await m.until(lambda: m.written.endswith(b"E"))
        ports = [a for a in m.log if a.kind.startswith("sync") and a.offset == 0][:6]
        assert [(a.kind, a.data) for a in ports] == [
            ("sync write", b"\x11"),
            ("sync write", b"\x11\x22"),
            ("sync write", b"\x11\x22\x33\x44"),
            ("sync read", b"\x11"),
            ("sync read", b"\x11\x12"),
            ("sync read", b"\x11\x12\x13\x14"),
        ]
        memory = [a for a in m.log if a.kind.startswith("mmio")]
        pattern, answer = bytes.fromhex("1122334455667788"), bytes(range(0x11, 0x19))
        assert memory[:4] == [Access("mmio write", 8 * i, pattern[: 1 << i]) for i in range(4)]
        assert memory[4:] == [Access("mmio read", 8 * i, answer[: 1 << i]) for i in range(4)] + memory[8:]
        seen = [m.memory.read(RESULTS + 8 * i, 8)[: 1 << (i if i < 3 else i - 3)] for i in range(7)]
        assert seen == [answer[: 1 << n] for n in (0, 1, 2, 0, 1, 2, 3)]


async def test_an_access_across_the_end_of_a_range(kvm: Kvm) -> None:
    async with Machine("sizes", kvm=kvm) as m:
        m.start()
        await m.until(lambda: m.written.endswith(b"E"))
        # KVM splits at the page; three bytes reach the device as two and one; beyond there is nobody.
        assert m.memory.read(RESULTS + 56, 4) == b"\x11\x12\x11\xff"
        assert [(a.offset, len(a.data)) for a in m.log if a.kind == "mmio read"][4:] == [(0xFFD, 2), (0xFFF, 1)]


async def test_string_instructions_go_element_by_element(kvm: Kvm) -> None:
    async with Machine("sizes", kvm=kvm) as m:
        m.start()
        await m.until(lambda: m.written.endswith(b"E"))
        strings = [(a.kind, a.data) for a in m.log if a.offset == 4]
        out = [("sync write", bytes([c])) for c in b"strin"] + [("sync write", w) for w in (b"st", b"ri", b"ng")]
        ins = [("sync read", b"\x11")] * 6 + [("sync read", b"\x11\x12\x13\x14")] * 2
        assert strings == out + ins
        assert m.memory.read(RESULTS + 64, 14) == b"\x11" * 6 + b"\x11\x12\x13\x14" * 2


async def test_policies_latch_note_ignore_and_nobody(kvm: Kvm) -> None:
    async with Machine("policies", kvm=kvm) as m:
        m.fast.shadow[0x10:0x12] = b"\xa1\xa2"
        m.fast.shadow[0x18] = 0x77
        m.start()
        await m.until(lambda: m.written.endswith(b"E"))
        result = m.memory.read(RESULTS, 14)
        assert result[0] == 0x5A, "a latched byte reads back at once"
        assert result[2:4] == b"\xa1\xa2"
        assert result[4] == 0x77, "a dropped write leaves the shadow alone"
        assert result[8:12] == b"\xff\xff\xff\xff"
        assert result[12:14] == b"\x11\x12", "one byte without a shadow makes the whole read wait"
        assert m.log == [
            Access("posted write", 0x08, b"\x5a"),
            Access("posted read", 0x10, b"\x11\x12"),  # noted: this device has no note_read, so it is a read
            Access("posted write", 0x07, b"\x11\x22"),
            Access("posted read", 0x07, b"\x11\x12"),
            Access("posted write", 0x0F, b"\x33\x44"),
            Access("sync write", 0, b"E"),
        ]
        assert m.fast.shadow[0x08] == 0x22
        assert m.fast.shadow[0x07] == 0
        c = m.cpu.counters
        assert (c.missed, c.ignored, c.posted) == (2, 1, 2)


async def test_of_a_register_for_dwords_only_dwords_are_posted(kvm: Kvm) -> None:
    async with Machine("dword", kvm=kvm) as m:
        m.start()
        await m.until(lambda: m.written.endswith(b"E"))
        written = [(a.offset, a.data) for a in m.log if a.kind == "posted write"]
        assert written == [
            (0x20, b"\x11\x22\x33\x44"),
            (0x20, b"\x11\x22"),
            (0x20, b"\x11"),
            (0x21, b"\x11\x22\x33\x44"),
        ]
        assert (m.cpu.counters.posted, m.cpu.counters.sync) == (1, 4)


async def test_a_write_of_what_a_register_shows_is_dropped(kvm: Kvm) -> None:
    async with Machine("same", kvm=kvm) as m:
        m.fast.shadow[0x24:0x26] = b"\x05\x06"
        m.start()
        await m.until(lambda: m.written.endswith(b"E"))
        written = [(a.offset, a.data) for a in m.log if a.kind == "posted write"]
        assert written == [(0x24, b"\x04"), (0x24, b"\x05\x07")]
        assert m.word(0x60000) == 0x0605
        assert (m.cpu.counters.ignored, m.cpu.counters.sync, m.cpu.counters.posted) == (2, 3, 0)


async def test_a_noted_read_tells_the_device_what_the_guest_was_shown(kvm: Kvm) -> None:
    class Noting(Recorder):
        def note_read(self, offset: int, data: bytes) -> None:
            self.log.append(Access("noted", offset, data))

    async with Machine("policies", kvm=kvm) as m:
        m.bus.remove(m.posted_range)
        noting = Noting(m.log, "posted")
        m.bus.add(Range(Space.PIO, 0x200, 0x28, noting, "noting", m.fast))
        m.fast.shadow[0x10:0x12] = b"\xa1\xa2"
        m.start()
        await m.until(lambda: m.written.endswith(b"E"))
        assert m.log[1] == Access("noted", 0x10, b"\xa1\xa2")


async def test_a_device_that_raises_hurts_nobody(kvm: Kvm) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("broken device")

    async with Machine("ask", kvm=kvm) as m:
        m.device.answer = fail
        m.start()
        await m.until(lambda: m.counter > 3)
        assert m.memory.read(RESULTS + 4, 1) == b"\xff"
        rng, exc = m.errors[0]
        assert rng is m.sync_range
        assert str(exc) == "broken device"
        m.device.answer = lambda offset, size: b"too long"
        await m.until(lambda: isinstance(m.errors[-1][1], ValueError))
        m.device.answer = lambda offset, size: b"\x42"
        await m.until(lambda: m.memory.read(RESULTS + 4, 1) == b"\x42")


async def test_a_guest_waits_for_an_asynchronous_read(kvm: Kvm) -> None:
    asked, given = asyncio.Event(), asyncio.Event()

    async def answer() -> bytes:
        asked.set()
        await given.wait()
        return b"\x42"

    async with Machine("ask", kvm=kvm) as m:
        m.device.answer = lambda offset, size: answer()
        m.start()
        await asked.wait()
        before = m.counter
        for _ in range(20):
            await asyncio.sleep(0)
        assert m.counter == before, "it runs on without its answer"
        given.set()
        await m.until(lambda: m.counter > before + 3)
        assert m.memory.read(RESULTS + 4, 1) == b"\x42"


async def test_an_asynchronous_read_that_fails_or_has_another_length_hurts_nobody(kvm: Kvm) -> None:
    answers = [b"too long"]

    async def answer() -> bytes:
        return answers.pop() if answers else bytes([1 // 0])

    async with Machine("ask", kvm=kvm) as m:
        m.device.answer = lambda offset, size: answer()
        m.start()
        await m.until(lambda: len(m.errors) > 2)
        assert m.memory.read(RESULTS + 4, 1) == b"\xff"
        assert [type(exc) for _, exc in m.errors[:2]] == [ValueError, ZeroDivisionError]


async def test_a_machine_ends_while_a_guest_waits_for_a_read(kvm: Kvm) -> None:
    asked = asyncio.Event()

    async def never() -> bytes:
        asked.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody answers")

    async with Machine("ask", kvm=kvm) as m:
        m.device.answer = lambda offset, size: never()
        m.start()
        await asyncio.wait_for(asked.wait(), HANGS)


async def test_a_write_that_raises_is_dropped_and_the_guest_goes_on(kvm: Kvm) -> None:
    def fail(offset: int, data: bytes) -> None:
        raise RuntimeError("broken device")

    async def fail_later() -> None:
        raise LookupError("later")

    async with Machine("hello", kvm=kvm) as m:
        m.device.on_write = lambda offset, data: fail_later() if data == b"A" else None
        m.posted.on_write = fail
        m.start()
        await m.until(lambda: m.written == b"AbcdE")
        assert [type(exc) for _, exc in m.errors] == [LookupError] + [RuntimeError] * 3


async def test_a_posted_write_cannot_be_awaited(kvm: Kvm) -> None:
    async def late() -> None:
        raise AssertionError("a guest could pile these up")

    async with Machine("hello", kvm=kvm) as m:
        m.posted.on_write = lambda offset, data: late()
        m.start()
        await m.until(lambda: m.written == b"AbcdE")
        assert [type(exc) for _, exc in m.errors] == [TypeError] * 3


async def test_an_owner_whose_callback_raises(kvm: Kvm) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    contexts: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
    async with Machine("hello", kvm=kvm) as m:
        m.device.on_write = fail
        m.loop._dispatch._on_device_error = fail
        m.start()
        await m.until(lambda: m.written == b"AbcdE" and len(contexts) == 2)


async def test_a_guest_waits_for_an_asynchronous_write(kvm: Kvm) -> None:
    done = asyncio.Event()

    async def finish() -> None:
        await done.wait()

    async with Machine("hello", kvm=kvm) as m:
        m.device.on_write = lambda offset, data: finish()
        m.start()
        await m.until(lambda: m.written == b"A")
        for _ in range(20):
            await asyncio.sleep(0)
        assert m.written == b"A"
        done.set()
        await m.until(lambda: m.written == b"AbcdE")


class Constant:
    """A device that reads as one byte, always the same."""

    def __init__(self, value: int) -> None:
        self.value = value

    def read(self, offset: int, size: int) -> bytes:
        return bytes([self.value])

    def write(self, offset: int, data: bytes) -> None:
        """Nothing."""


async def test_the_range_table_changes_while_the_guest_runs(kvm: Kvm) -> None:
    async with Machine("ask", kvm=kvm) as m:
        m.start()
        await m.until(lambda: m.counter > 1)
        current = m.sync_range
        for round_ in range(200):
            m.bus.remove(current)
            current = m.bus.add(Range(Space.PIO, 0x100, 0x20, Constant(round_ & 0x7F), "other"))
            await m.counts_on(3)
            assert m.memory.read(RESULTS + 4, 1) == bytes([round_ & 0x7F])
        m.bus.remove(current)
        await m.until(lambda: m.memory.read(RESULTS + 4, 1) == b"\xff")
        assert m.cpu.counters.missed > 0
        assert not m.errors


async def test_memory_above_4_gib(kvm: Kvm) -> None:
    high = 4 << 30
    async with Machine("high", ram=[(0, 2 << 20), (high, 1 << 20)], kvm=kvm) as m:
        m.memory.write(high + 0x2000, b"far away")
        m.start()
        await m.until(lambda: m.written == b"E")
        assert m.memory.read(high + 0x1000, 8) == (0x1122334455667788).to_bytes(8, "little")
        assert m.memory.read(RESULTS, 8) == b"far away"


async def test_a_slot_comes_and_goes_with_its_region(kvm: Kvm) -> None:
    async with Machine("ask", kvm=kvm) as m:
        rom = m.memory.map_fd(MMIO + 0x10000, 0x1000, m.memory.regions[0].fd, readonly=True)
        m.vm.set_memory(m.memory)
        m.memory.unmap(rom)
        m.vm.set_memory(m.memory)
        m.start()
        await m.until(lambda: m.counter > 3)
