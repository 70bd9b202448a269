"""The IOMMU's rules, request by request, against a model that knows pages and nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.iommu.domains import Added, Bound, Domains, Outcome, Removed
from aiovmm.devices.virtio.iommu.wire import Attach, Detach, Malformed, Map, Probe, Request, Status, Unmap, parse
from aiovmm.testing.pci import MESSAGES

PAGE = 4096
END = (1 << 48) - 1
NONE4, NONE8 = bytes(4), bytes(8)


def attach(domain: int, endpoint: int, flags: int = 0, reserved: bytes = NONE4) -> Attach:
    return Attach(domain, endpoint, flags, reserved)


def map_(domain: int, first: int, pages: int = 1, physical: int = 0, flags: int = 3) -> Map:
    return Map(domain, first * PAGE, (first + pages) * PAGE - 1, physical * PAGE, flags)


def unmap(domain: int, first: int, pages: int = 1) -> Unmap:
    return Unmap(domain, first * PAGE, (first + pages) * PAGE - 1, NONE4)


@pytest.fixture
def iommu() -> Domains:
    domains = Domains(input_end=END, messages=MESSAGES, limit=8)
    for endpoint in (8, 16):
        assert domains.add_endpoint(endpoint) == Bound(endpoint, None, True)
    return domains


def play(iommu: Domains, *requests: Request) -> Outcome:
    """All but the last must succeed."""
    for request in requests[:-1]:
        assert iommu.handle(request).status is Status.OK
    return iommu.handle(requests[-1])


@pytest.mark.parametrize(
    ("requests", "status"),
    [
        ([attach(1, 8)], Status.OK),
        ([attach(1, 8), attach(1, 8)], Status.OK),
        ([attach(1, 8), attach(1, 16)], Status.OK),
        ([attach(1, 8), attach(2, 8)], Status.OK),
        ([attach(1, 99)], Status.NOENT),
        ([attach(1, 8, 2)], Status.INVAL),
        ([attach(1, 8, 0, b"\0\1\0\0")], Status.INVAL),
        ([attach(1, 8), attach(1, 16, 1)], Status.INVAL),
        ([attach(1, 8, 1), attach(1, 16)], Status.INVAL),
        ([Detach(1, 8, NONE8)], Status.INVAL),
        ([attach(1, 8), Detach(2, 8, NONE8)], Status.INVAL),
        ([attach(1, 8), Detach(1, 16, NONE8)], Status.INVAL),
        ([attach(1, 8), Detach(1, 99, NONE8)], Status.NOENT),
        ([attach(1, 8), Detach(1, 8, NONE8), Detach(1, 8, NONE8)], Status.INVAL),
        ([map_(1, 0)], Status.NOENT),
        ([map_(1, 0, flags=4)], Status.INVAL),  # what can never be right comes before what is not there
        ([Map(1, PAGE, PAGE - 1, 0, 3)], Status.INVAL),
        ([Unmap(1, PAGE, 0, NONE4)], Status.INVAL),
        ([attach(1, 8), map_(1, 0)], Status.OK),
        ([attach(1, 8), map_(1, 0, flags=0)], Status.OK),
        ([attach(1, 8), map_(1, 0, flags=4)], Status.INVAL),  # MMIO is not offered
        ([attach(1, 8, 1), map_(1, 0)], Status.INVAL),
        ([attach(1, 8), Map(1, 0, 100, 0, 3)], Status.RANGE),
        ([attach(1, 8), Map(1, 1, PAGE, 0, 3)], Status.RANGE),
        ([attach(1, 8), Map(1, 0, PAGE - 1, 7, 3)], Status.RANGE),
        ([attach(1, 8), Map(1, PAGE, PAGE - 1, 0, 3)], Status.INVAL),
        ([attach(1, 8), Map(1, END + 1 - PAGE, END, 0, 3)], Status.OK),
        ([attach(1, 8), Map(1, END + 1, END + PAGE, 0, 3)], Status.RANGE),
        ([attach(1, 8), Map(1, 0, 2 * PAGE - 1, (1 << 64) - PAGE, 3)], Status.RANGE),
        ([attach(1, 8), map_(1, 4, 2), map_(1, 5)], Status.INVAL),
        ([attach(1, 8), map_(1, 4, 2), map_(1, 0, 10)], Status.INVAL),
        ([attach(1, 8), map_(1, 4, 2), map_(1, 6), map_(1, 3)], Status.OK),
        ([attach(1, 8), *(map_(1, i) for i in range(9))], Status.NOMEM),
        ([unmap(1, 0)], Status.NOENT),
        ([attach(1, 8), unmap(1, 0, 100)], Status.OK),
        ([attach(1, 8, 1), unmap(1, 0)], Status.INVAL),
        # the examples of §5.13.6.6
        ([attach(1, 8), map_(1, 0, 10), unmap(1, 0, 10)], Status.OK),
        ([attach(1, 8), map_(1, 0, 5), map_(1, 5, 5), unmap(1, 0, 10)], Status.OK),
        ([attach(1, 8), map_(1, 0, 10), unmap(1, 0, 5)], Status.RANGE),
        ([attach(1, 8), map_(1, 0, 10), unmap(1, 5, 5)], Status.RANGE),
        ([attach(1, 8), map_(1, 0, 5), map_(1, 5, 5), unmap(1, 0, 5)], Status.OK),
        ([attach(1, 8), map_(1, 0, 5), unmap(1, 0, 10)], Status.OK),
        ([attach(1, 8), map_(1, 0, 5), map_(1, 10, 5), unmap(1, 0, 15)], Status.OK),
        ([Probe(8)], Status.OK),
        ([Probe(9)], Status.NOENT),
    ],
)
def test_statuses(iommu: Domains, requests: list[Request], status: Status) -> None:
    assert play(iommu, *requests).status is status


def test_a_domain_ends_with_its_last_endpoint_and_its_mappings_with_it(iommu: Domains) -> None:
    play(iommu, attach(1, 8), attach(1, 16), map_(1, 0))
    assert play(iommu, Detach(1, 8, NONE8)).effects == (Bound(8, None, True),)
    assert play(iommu, unmap(1, 0, 1)).effects == (Removed(1, 0, PAGE - 1),)
    play(iommu, map_(1, 0))
    assert play(iommu, attach(2, 16)).effects == (Bound(16, 2, False),)
    assert iommu.mapped == 0
    assert play(iommu, map_(1, 0)).status is Status.NOENT
    play(iommu, attach(1, 8))
    assert not list(iommu.mappings(1))


def test_a_refused_unmap_leaves_all_mappings(iommu: Domains) -> None:
    play(iommu, attach(1, 8), map_(1, 0, 2), map_(1, 2, 2), map_(1, 4, 2))
    before = list(iommu.mappings(1))
    refused = iommu.handle(unmap(1, 0, 5))
    assert (refused.status, refused.effects) == (Status.RANGE, ())
    assert list(iommu.mappings(1)) == before


def test_bypass_is_for_the_unattached_and_survives_a_reset(iommu: Domains) -> None:
    play(iommu, attach(1, 8))
    assert iommu.set_bypass(False) == (Bound(16, None, False),)
    assert iommu.set_bypass(False) == ()
    assert play(iommu, Detach(1, 8, NONE8)).effects == (Bound(8, None, False),)
    assert play(iommu, attach(3, 8, 1)).effects == (Bound(8, None, True),)
    assert iommu.reset() == (Bound(8, None, False),)
    assert not iommu.bypass


def test_the_msi_window_is_told(iommu: Domains) -> None:
    properties = play(iommu, Probe(16)).properties
    kind, length, subtype, start, end = struct.unpack("<HHB3xQQ", properties)
    assert (kind, length, subtype, start, end) == (1, 20, 1, 0xFEE00000, 0xFEEFFFFF)
    assert len(properties) == 4 + length


@given(st.binary(max_size=90))
def test_any_bytes_are_a_request_or_are_refused(data: bytes) -> None:
    try:
        parse(data)
    except Malformed:
        assert len(data) < 72


requests = st.one_of(
    st.builds(attach, st.integers(0, 2), st.sampled_from([8, 16, 24]), st.sampled_from([0, 0, 0, 1])),
    st.builds(Detach, st.integers(0, 2), st.sampled_from([8, 16, 24]), st.just(NONE8)),
    st.builds(map_, st.integers(0, 2), st.integers(0, 12), st.integers(1, 4), st.integers(0, 20), st.integers(0, 3)),
    st.builds(unmap, st.integers(0, 2), st.integers(0, 12), st.integers(1, 8)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(requests, max_size=40))
def test_what_endpoints_reach_is_what_a_model_of_pages_says(script: list[Request]) -> None:
    iommu = Domains(input_end=END, messages=MESSAGES)
    attached: dict[int, tuple[int, bool] | None] = {8: None, 16: None}
    pages: dict[int, dict[int, tuple[int, int, int]]] = {}  # domain: page -> (page it leads to, flags, mapping's first)
    for e in attached:
        iommu.add_endpoint(e)
    bound = {e: Bound(e, None, True) for e in attached}
    for request in script:
        outcome = iommu.handle(request)
        ok = outcome.status is Status.OK
        for effect in outcome.effects:
            if isinstance(effect, Bound):
                bound[effect.endpoint] = effect
            assert ok
        match request:
            case Attach(domain, endpoint, flags):
                others = {bool(a[1]) for a in attached.values() if a is not None and a[0] == domain}
                assert ok == (endpoint in attached and others <= {bool(flags)})
                if ok:
                    attached[endpoint] = (domain, bool(flags))
            case Detach(domain, endpoint):
                current = attached.get(endpoint)
                assert ok == (current is not None and current[0] == domain)
                if ok:
                    attached[endpoint] = None
            case Map(domain, start, end, physical, flags):
                alive = any(a == (domain, False) for a in attached.values())
                wanted = range(start // PAGE, end // PAGE + 1)
                table = pages.setdefault(domain, {}) if alive else {}
                assert ok == (alive and not any(p in table for p in wanted))
                if ok:
                    table.update({p: (physical // PAGE + p - wanted[0], flags, wanted[0]) for p in wanted})
                    assert [type(e) for e in outcome.effects] == [Added]
            case Unmap(domain, start, end):
                alive = any(a == (domain, False) for a in attached.values())
                wanted = range(start // PAGE, end // PAGE + 1)
                table = pages.get(domain, {}) if alive else {}
                hit = {table[p][2] for p in wanted if p in table}
                whole = all(p in wanted for p, entry in table.items() if entry[2] in hit)
                assert ok == (alive and whole)
                if ok:
                    for p in [p for p in table if p in wanted]:
                        del table[p]
        live = {a[0] for a in attached.values() if a is not None}
        pages = {domain: table for domain, table in pages.items() if domain in live}
        for e, a in attached.items():
            expected = Bound(e, None, True) if a is None else Bound(e, None if a[1] else a[0], a[1])
            assert bound[e] == expected
        for domain in range(3):
            seen = {
                page: ((m.physical + page * PAGE - m.start) // PAGE, m.flags, m.start // PAGE)
                for m in iommu.mappings(domain)
                for page in range(m.start // PAGE, m.end // PAGE + 1)
            }
            assert seen == pages.get(domain, {})
        assert iommu.mapped == sum(len(list(iommu.mappings(d))) for d in range(3))
