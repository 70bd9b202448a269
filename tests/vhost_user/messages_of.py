"""Any message that a peer may send, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from aiovmm.vhost_user.messages import Message, Request, answer_layout, layout_of
from aiovmm.vhost_user.payloads import (
    ConfigSpace,
    Empty,
    InflightArea,
    MemoryTable,
    Payload,
    Region,
    VringAddr,
    VringState,
    Word,
)
from aiovmm.vhost_user.protocol import CONFIG_SIZE, MAX_REGIONS, NO_FD, BackendRequest, Flag, FrontendRequest

U64, U32, U16 = (st.integers(0, (1 << bits) - 1) for bits in (64, 32, 16))
HALF = st.integers(0, (1 << 63) - 1)
RING_FDS = {FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL, FrontendRequest.SET_VRING_ERR}

REGIONS = st.builds(Region, HALF, st.integers(1, 1 << 62), HALF, HALF)


@st.composite
def config_spaces(draw: st.DrawFn) -> ConfigSpace:
    data = draw(st.binary(max_size=CONFIG_SIZE))
    return ConfigSpace(draw(st.integers(0, CONFIG_SIZE - len(data))), data, draw(U32))


PAYLOADS: dict[type[Payload], st.SearchStrategy[Payload]] = {
    Empty: st.just(Empty()),
    Word: st.builds(Word, U64),
    VringState: st.builds(VringState, U32, U32),
    VringAddr: st.builds(VringAddr, U32, U64, U64, U64, U32, U64),
    MemoryTable: st.lists(REGIONS, min_size=1, max_size=MAX_REGIONS).map(lambda rows: MemoryTable(tuple(rows))),
    ConfigSpace: config_spaces(),
    InflightArea: st.builds(InflightArea, HALF, HALF, U16, U16),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """A legal one, with invented fd numbers."""
    request: Request = draw(st.sampled_from([*FrontendRequest, *BackendRequest]))
    answers = answer_layout(request)
    if answers is not None and draw(st.booleans()):
        payload = draw(PAYLOADS[answers.payload])
        return Message(request, payload, tuple(range(draw(st.sampled_from(answers.fds)))), Flag.REPLY)
    layout = layout_of(request)
    count = draw(st.sampled_from(layout.fds))
    payload = draw(PAYLOADS[layout.payload])
    if isinstance(payload, MemoryTable):
        count = len(payload.regions)
    if request in RING_FDS:
        payload = Word(draw(st.integers(0, 255)) | (0 if count else NO_FD))
    flags = draw(st.sampled_from([Flag(0), Flag.NEED_REPLY]))
    return Message(request, payload, tuple(range(100, 100 + count)), flags)
