"""Device status and feature negotiation, as the driver sees the registers (VIRTIO 1.2 §2.1, §2.2, §3.1.1, §4.1.4.3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.virtqueue.config import NO_VECTOR
from aiovmm.virtqueue.features import ACCESS_PLATFORM, EVENT_IDX, RING_FEATURES, RING_RESET, VERSION_1
from aiovmm.virtqueue.status import Activate, DriverFailed, Negotiation, ResetDevice, ResetQueue, Status

ACK, DRIVER, OK, FEATURES, NEEDS, FAILED = 1, 2, 4, 8, 64, 128
OFFER = RING_FEATURES | 0b101


def negotiation(offered: int = OFFER, **options: object) -> Negotiation:
    return Negotiation(offered, (256, 64), **options)  # type: ignore[arg-type]


def accept(n: Negotiation, features: int) -> None:
    for half in (0, 1):
        n.driver_feature_select = half
        n.write_driver_feature(features >> 32 * half & 0xFFFFFFFF)


def bring_up(n: Negotiation, features: int = OFFER) -> list[object]:
    n.write_status(ACK)
    n.write_status(ACK | DRIVER)
    accept(n, features)
    n.write_status(ACK | DRIVER | FEATURES)
    return list(n.write_status(ACK | DRIVER | FEATURES | OK))


def test_the_sequence_of_the_specification_activates_the_device() -> None:
    n = negotiation()
    assert bring_up(n, VERSION_1 | 4) == [Activate(VERSION_1 | 4)]
    assert n.status == ACK | DRIVER | FEATURES | OK
    assert n.live
    assert n.features == VERSION_1 | 4


def test_the_offer_is_read_in_halves_and_is_zero_beyond() -> None:
    n = negotiation()
    halves = []
    for n.device_feature_select in (0, 1, 2, 3, 4, 0xFFFFFFFF):
        halves.append(n.device_feature)
    assert halves == [OFFER & 0xFFFFFFFF, OFFER >> 32, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "features",
    [OFFER & ~VERSION_1, OFFER | 2, OFFER | 1 << 63, 0],
    ids=["no VERSION_1", "a bit not offered", "a high bit not offered", "nothing"],
)
def test_features_that_cannot_be_leave_features_ok_clear(features: int) -> None:
    n = negotiation()
    assert bring_up(n, features) == []
    assert n.status == ACK | DRIVER
    assert not n.live


def test_a_driver_may_try_other_features_after_a_refusal() -> None:
    n = negotiation()
    bring_up(n, 0)
    accept(n, VERSION_1)
    n.write_status(n.status | FEATURES)
    assert n.write_status(n.status | OK) == [Activate(VERSION_1)]


def test_the_device_may_refuse_a_combination() -> None:
    n = negotiation(accepts=lambda features: not features & 4)
    assert bring_up(n, VERSION_1 | 4) == []
    assert not n.status & FEATURES


def test_a_device_behind_an_iommu_needs_a_driver_that_translates() -> None:
    """§6.2: ACCESS_PLATFORM offered and not accepted would read the wrong addresses."""
    n = negotiation(OFFER | ACCESS_PLATFORM)
    assert bring_up(n, OFFER) == []
    accept(n, OFFER | ACCESS_PLATFORM)
    n.write_status(n.status | FEATURES)
    assert n.status & FEATURES


def test_features_are_frozen_by_features_ok() -> None:
    n = negotiation()
    bring_up(n, VERSION_1)
    accept(n, OFFER)
    assert n.features == VERSION_1


@pytest.mark.parametrize("value", [DRIVER, FEATURES, OK, DRIVER | FEATURES | OK])
def test_no_step_can_be_skipped(value: int) -> None:
    n = negotiation()
    accept(n, VERSION_1)
    assert n.write_status(value) == []
    assert n.status == 0


def test_a_bit_cannot_be_cleared() -> None:
    n = negotiation()
    bring_up(n)
    assert n.write_status(ACK | DRIVER) == []
    assert n.status == ACK | DRIVER | FEATURES | OK
    n = negotiation()
    n.write_status(ACK | DRIVER)
    accept(n, VERSION_1)
    n.write_status(FEATURES)  # would clear two: the whole write is ignored
    assert n.status == ACK | DRIVER


def test_needs_reset_belongs_to_the_device() -> None:
    n = negotiation()
    n.write_status(ACK | NEEDS)
    assert n.status == ACK
    bring_up(n)
    assert n.needs_reset()  # the driver is there: interrupt it
    assert not n.needs_reset()  # once
    assert n.status & NEEDS
    n.write_status(ACK | DRIVER | FEATURES | OK)  # writing without the bit does not clear it
    assert n.status & NEEDS


def test_a_device_that_breaks_before_driver_ok_does_not_interrupt() -> None:
    n = negotiation()
    n.write_status(ACK)
    assert not n.needs_reset()
    assert n.status == ACK | NEEDS


def test_failed_is_final_until_reset() -> None:
    n = negotiation()
    n.write_status(ACK | DRIVER)
    accept(n, VERSION_1)
    assert n.write_status(ACK | DRIVER | FAILED) == [DriverFailed()]
    assert n.write_status(ACK | DRIVER | FAILED | FEATURES | OK) == []
    assert n.write_status(0) == [ResetDevice()]
    n.reset_done()
    assert bring_up(n) == [Activate(OFFER)]


def test_reset_reads_zero_only_when_it_is_done() -> None:
    n = negotiation()
    bring_up(n)
    n.queues[1].desc = 0x1000
    assert n.write_status(0) == [ResetDevice()]
    assert n.status != 0
    assert not n.live
    assert n.write_status(ACK) == n.write_status(0) == []  # another vCPU, meanwhile
    assert not n.needs_reset()
    n.reset_done()
    assert n.status == 0
    assert n.driver_features == 0
    assert n.queues[1].desc == 0


def test_queue_registers_follow_the_selector() -> None:
    n = negotiation()
    n.queue_select = 1
    assert n.queue is not None
    assert (n.queue.size, n.queue.ready, n.queue.vector) == (64, False, NO_VECTOR)
    n.queue_select = 2
    assert n.queue is None
    assert n.configurable_queue is None
    n.enable_queue(1)  # harmless


def test_an_enabled_queue_cannot_be_changed_and_zero_does_not_disable() -> None:
    n = negotiation()
    assert n.configurable_queue is n.queues[0]
    n.enable_queue(0)
    assert not n.queues[0].ready
    n.enable_queue(1)
    assert n.configurable_queue is None
    n.enable_queue(0)
    assert n.queues[0].ready


def test_queues_are_frozen_while_the_device_is_live() -> None:
    n = negotiation()
    bring_up(n)
    assert n.configurable_queue is None
    n.enable_queue(1)
    assert not n.queues[0].ready


def test_one_queue_can_be_reset_and_set_up_again_with_ring_reset() -> None:
    n = negotiation(OFFER | RING_RESET)
    n.enable_queue(1)
    bring_up(n, OFFER | RING_RESET)
    assert n.write_queue_reset(1) == [ResetQueue(0)]
    assert n.queue_reset == 1
    assert n.write_queue_reset(1) == []
    n.queue_reset_done(0)
    assert n.queue_reset == 0
    assert not n.queues[0].ready
    n.enable_queue(1)
    assert n.queues[0].ready


def test_without_ring_reset_a_queue_cannot_be_reset() -> None:
    n = negotiation()
    n.enable_queue(1)
    bring_up(n)
    assert n.write_queue_reset(1) == []


def test_a_configuration_change_is_a_new_generation_and_interrupts_a_live_driver() -> None:
    n = negotiation()
    assert not n.config_changed()
    assert n.config_generation == 1
    bring_up(n)
    assert n.config_changed()
    n.config_generation = 255
    n.config_changed()
    assert n.config_generation == 0


@given(st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 3, 11, 15])), max_size=40), st.booleans())
def test_no_sequence_of_writes_activates_without_agreement(writes: list[int], agree: bool) -> None:
    n = negotiation()
    live = False
    for value in writes:
        if agree:
            accept(n, VERSION_1 | EVENT_IDX)
        for effect in n.write_status(value):
            if isinstance(effect, Activate):
                assert agree
                assert not live
                assert effect.features == VERSION_1 | EVENT_IDX
                live = True
            if isinstance(effect, ResetDevice):
                live = False
                n.reset_done()
        assert n.live == live
        assert not n.status & Status.DRIVER_OK or n.status & Status.FEATURES_OK
