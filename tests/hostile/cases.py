"""All of them."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile import chains, floods, rarer_requests, registers, requests, rings, transport
from tests.hostile.case import Case, Verdict
from tests.hostile.rig import Rig

__all__ = ["CASES", "QUICK", "judge"]

CASES: list[Case] = [
    case for module in (chains, rings, transport, registers, requests, rarer_requests, floods) for case in module.CASES
]


def _some() -> Iterator[Case]:
    """Of each category one for each target."""
    seen = set()
    for case in CASES:
        key = case.category, case.target
        if key not in seen:
            seen.add(key)
            yield case


QUICK = {case.id for case in _some()}
"""Where the rest is thorough."""


async def judge(case: Case, rig: Rig) -> None:
    """Run it, look at the device, and have a good driver come."""
    await case.does(rig)
    await rig.settle()
    if case.verdict is Verdict.BREAKS:
        assert await rig.needs_reset(), f"status {rig.driver.status!r}"
    elif case.verdict is Verdict.SERVES:
        assert rig.driver.status == 0xF
        await rig.returned()
        await rig.target.good(rig.driver)
    elif case.verdict is Verdict.DEAD:
        assert not rig.driver.status & 4
    await rig.recovers()
