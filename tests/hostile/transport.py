"""The order in which a driver brings a device up (VIRTIO 1.2 3.1.1), and all others; resets at every moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tests.hostile.case import Case, Verdict, for_all
from tests.hostile.rig import Rig

__all__ = ["CASES"]

Does = Callable[[Rig], Awaitable[None]]
_STATUS, _SELECT, _ENABLE, _RESET = 0x14, 0x16, 0x1C, 0x3A


def statuses(values: Sequence[int], *, first: int | None = 0) -> Does:
    """These written to device_status, one after the other, after a reset; and a kick."""

    async def does(rig: Rig) -> None:
        queue = rig.queue
        if first is not None:
            await rig.driver.set_common(_STATUS, first, 1)
        for value in values:
            await rig.driver.set_common(_STATUS, value, 1)
        queue.kick(force=True)

    return does


async def features_not_offered(rig: Rig) -> None:
    driver = rig.driver
    await driver.set_common(_STATUS, 0, 1)
    await driver.set_common(_STATUS, 3, 1)
    for half in range(4):
        await driver.set_common(0x08, half, 4)
        await driver.set_common(0x0C, 0xFFFFFFFF, 4)
    await driver.set_common(_STATUS, 0xB, 1)
    assert not driver.status & 8
    await driver.set_common(_STATUS, 0xF, 1)
    assert not driver.status & 4


async def features_change_while_live(rig: Rig) -> None:
    for half in (0, 1):
        await rig.driver.set_common(0x08, half, 4)
        await rig.driver.set_common(0x0C, 0, 4)


async def selectors_beyond_all(rig: Rig) -> None:
    driver = rig.driver
    for offset, size in ((0x00, 4), (0x08, 4), (0x16, 2)):
        for value in (0xFFFFFFFF, 0x80000000, 0x7FFF, 99):
            await driver.set_common(offset, value & (1 << 8 * size) - 1, size)
            assert driver.common(0x04, 4) >= 0
    for offset, size in ((0x18, 2), (0x1C, 2), (0x1E, 2), (0x20, 8)):
        await driver.set_common(offset, 1, size)
        assert driver.common(offset, size) == 0 or offset == 0x1E


async def queues_change_while_live(rig: Rig) -> None:
    for index in range(len(rig.driver.queues)):
        await rig.driver.set_common(_SELECT, index, 2)
        for offset in (0x20, 0x28, 0x30):
            await rig.driver.set_common(offset, 0xDEADBEE0, 4)
            await rig.driver.set_common(offset + 4, 0xFF, 4)
        await rig.driver.set_common(0x18, 2, 2)
        for value in (0, 2, 0xFFFF):
            await rig.driver.set_common(_ENABLE, value, 2)


async def one_queue_is_reset(rig: Rig) -> None:
    for index in (0, 1, 0xFFFF):
        await rig.driver.set_common(_SELECT, index, 2)
        for value in (1, 1, 0, 2):
            await rig.driver.set_common(_RESET, value, 2)


def reset_with(requests: int, *, times: int = 1) -> Does:
    """A reset while that many are with the device."""

    async def does(rig: Rig) -> None:
        for _ in range(times):
            for _ in range(requests):
                rig.offer()
            rig.queue.kick(force=True)
            await rig.driver.start()

    return does


async def kicks_while_it_is_down(rig: Rig) -> None:
    queue = rig.queue
    await rig.driver.set_common(_STATUS, 0, 1)
    for _ in range(50):
        queue.kick(force=True)


async def kicks_of_queues_that_are_not_there(rig: Rig) -> None:
    from aiovmm.pci.capabilities import VirtioCapType

    notify = rig.driver.structures[VirtioCapType.NOTIFY]
    for offset in (0, 4 * 63, notify.length - 2, notify.length - 4):
        for note in (b"\xff\xff", b"\0\0", b"\x40\0", b"\xff", b"\xff" * 4):
            if offset + len(note) <= notify.length:
                rig.guest.write(notify.address + offset, note)


async def half_of_the_queues(rig: Rig) -> None:
    """DRIVER_OK with none, or only the first one, enabled."""
    driver = rig.driver
    for enabled in (0, 1):
        await driver.reset()
        await driver.negotiate()
        if enabled:
            driver.queues = [await driver._setup_queue(0, 0)]
            await driver.set_common(_ENABLE, 1, 2)
        await driver.set_common(_STATUS, driver.status | 4, 1)
        await rig.settle()


DOWN = {
    "straight to DRIVER_OK": statuses([4]),
    "DRIVER_OK without FEATURES_OK": statuses([1, 3, 7]),
    "FEATURES_OK without DRIVER": statuses([1, 9, 13]),
    "DRIVER_OK twice": statuses([1, 3, 7, 7]),
    "bits are cleared again": statuses([3, 1, 2]),
    "FAILED, then on": statuses([0x80, 0x83, 0x8B, 0x8F]),
    "NEEDS_RESET written": statuses([0x40, 0x43, 0x4B]),
    "all bits": statuses([0xFF]),
    "features that were not offered": features_not_offered,
    "kicks while it is down": kicks_while_it_is_down,
}
LIVE = {
    "bits are cleared while it is live": statuses([0xB, 0x3, 0x1, 0xC], first=None),
    "features change while it is live": features_change_while_live,
    "queues change while it is live": queues_change_while_live,
    "selectors beyond all": selectors_beyond_all,
    "kicks of queues that are not there": kicks_of_queues_that_are_not_there,
    "a reset, nothing in flight": reset_with(0),
    "a reset, one in flight": reset_with(1),
    "a reset, many in flight": reset_with(16),
    "resets again and again": reset_with(4, times=12),
}
GIVEN_UP = {
    "FAILED while it is live": statuses([0x8F], first=None),
    "one queue is reset": one_queue_is_reset,
    "half of the queues": half_of_the_queues,
}

CASES: list[Case] = [
    *for_all("order", DOWN, Verdict.DEAD),
    *for_all("order", LIVE, Verdict.SERVES),
    *for_all("order", GIVEN_UP, Verdict.EITHER),
]
