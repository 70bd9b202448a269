"""A snapshot is input: whatever stands in it is refused by a SnapshotError, or makes a guest; nothing else happens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm import VM, AiovmmError, ConsoleConfig, DiskConfig, HostError, RngConfig, SnapshotError, VsockConfig
from aiovmm.snapshot.directory import STATE
from aiovmm.snapshot.document import decode, encode
from tests.at_limits import NUMBERS
from tests.vm.guest import config, counts_on

pytestmark = pytest.mark.usefixtures("kvm_there")
ODD: st.SearchStrategy[object] = (
    st.none()
    | st.booleans()
    | st.integers(-1, 1 << 64)
    | st.sampled_from(NUMBERS)
    | st.text(max_size=4)
    | st.binary(max_size=8)
    | st.sampled_from([[], {}])
)
SOME = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def places(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    found = [path] if path else []
    for key, value in items:
        found += places(value, (*path, key))
    return found


async def saved(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    devices: dict[str, Any] = {"console": ConsoleConfig(), "rng": RngConfig(), "vsock": VsockConfig()}
    async with VM(config("s", **devices, disks=(DiskConfig(path=tmp_path / "disk"),))) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "s")
    return decode((tmp_path / "s" / STATE).read_bytes())


def put(state: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(state)
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return changed


async def test_anything_else_in_its_place_is_refused_or_makes_a_guest(tmp_path: Path) -> None:
    state = await saved(tmp_path)
    there = [p for p in places(state) if p[0] == "machine" or p[0] == "memory"]
    cases: list[tuple[tuple[Any, ...], Any]] = []

    @SOME
    @given(st.sampled_from(there), ODD | st.just(...))
    def draw(place: tuple[Any, ...], odd: Any) -> None:
        cases.append((place, odd))

    draw()
    for place, odd in cases:
        (tmp_path / "s" / STATE).write_bytes(encode(put(state, place, odd)))
        try:
            async with VM.restore(tmp_path / "s") as vm:
                await vm.resume()
        except (SnapshotError, HostError):
            continue
        except AiovmmError as exc:
            raise AssertionError(f"{place} = {odd!r}: {exc!r}") from exc
    (tmp_path / "s" / STATE).write_bytes(encode(state))
    async with VM.restore(tmp_path / "s") as vm:
        await vm.resume()
        await counts_on(vm)


async def test_a_processor_that_this_host_has_not(tmp_path: Path) -> None:
    state = await saved(tmp_path)
    rows = state["machine"]["board"]["processors"]["vcpus"][0]["cpuid"]
    for row in rows:
        if row[0] == 0:
            row[4] ^= 1  # EBX: the first letters of the maker's name
        if row[0] == 7 and row[1] == 0:
            row[4] |= 1 << 22  # EBX: PCOMMIT, which no processor ever had
    (tmp_path / "s" / STATE).write_bytes(encode(state))
    with pytest.raises(SnapshotError, match=r"lacks a processor of .*, CPUID 0x7\.0 EBX bit 22"):
        async with VM.restore(tmp_path / "s"):
            pass


async def test_another_architecture(tmp_path: Path) -> None:
    state = await saved(tmp_path)
    (tmp_path / "s" / STATE).write_bytes(encode({**state, "architecture": "aarch64"}))
    with pytest.raises(SnapshotError, match="guest for aarch64, and this host is x86_64"):
        async with VM.restore(tmp_path / "s"):
            pass
