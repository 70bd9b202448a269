"""A snapshot and those that it is over: increments, the newest first, and the whole one at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from aiovmm.errors import HostError, SnapshotError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import State
from aiovmm.snapshot.directory import BaseOf, Opened, open_snapshot
from aiovmm.snapshot.increment import Increment, open_increment
from aiovmm.snapshot.pages import Kept

__all__ = ["MOST", "Chain", "base_at", "open_chain"]

MOST = 64
"""Snapshots in a chain: what a restored guest has to read, and how many directories have to be as they were."""


@dataclass(frozen=True)
class Chain:
    """`state`, `size` (of the RAM) and `identity` are the newest's; the memory's file `whole` is of the oldest. That and the
    increments are the caller's to close."""

    state: State
    size: int
    identity: str
    whole: int
    kept: Kept
    increments: list[Increment]
    places: list[Path]
    """Where they are, the newest first."""

    def close(self) -> None:
        """Once."""
        os.close(self.whole)
        for increment in self.increments:
            increment.close()


def open_chain(path: Path, allows: Callable[[Path], bool] = lambda _: True) -> Chain:
    """In a thread; those that it is over are where `allows` says that they may be. Raises SnapshotError for what is none,
    HostError."""
    increments: list[Increment] = []
    places = [path]
    try:
        first = opened = open_snapshot(path)
        while opened.base is not None:
            increments.append(_increment(path, opened, first.size))
            if len(increments) >= MOST:
                raise SnapshotError(
                    f"{path}: there are more than {MOST} snapshots one over the other: take a whole one"
                )
            path, opened = _base(path, opened.base, allows)
            places.append(path)
        if opened.size != first.size:
            os.close(opened.memory)
            raise _other_size(path)
        return Chain(
            first.state, first.size, first.identity, opened.memory, Kept(opened.pages, opened.sum), increments, places
        )
    except BaseException:
        for increment in increments:
            increment.close()
        raise


def _increment(path: Path, opened: Opened, size: int) -> Increment:
    try:
        if opened.size != size:
            raise _other_size(path)
        return open_increment(opened.memory, size, Kept(opened.pages, opened.sum), opened.maps)
    except SnapshotError as exc:
        os.close(opened.memory)
        raise SnapshotError(f"{path}: {exc}") from exc
    except BaseException:
        os.close(opened.memory)
        raise


def _other_size(path: Path) -> SnapshotError:
    return SnapshotError(f"{path}: it is of a guest with more or less memory than the one that is over it")


def _base(path: Path, base: BaseOf, allows: Callable[[Path], bool]) -> tuple[Path, Opened]:
    where = path / base.path
    if not allows(where):
        raise SnapshotError(
            f"{path}: it is over the snapshot at {where}, and nothing that is there may be opened for it"
        )
    try:
        opened = open_snapshot(where)
    except HostError as exc:
        raise SnapshotError(f"{path}: it is over the snapshot at {where}, which cannot be had: {exc}") from exc
    if opened.identity != base.identity:
        os.close(opened.memory)
        raise SnapshotError(
            f"{path}: it is over the snapshot that was at {where}, and that is another one by now: "
            "put the one that was there back, or take a whole snapshot"
        )
    return where, opened


def base_at(base: Path, path: Path, size: int) -> BaseOf:
    """The snapshot at `base`, for an increment at `path` that is over it, of a guest with `size` bytes of RAM. In a thread.
    Raises SnapshotError, also for one whose place the increment would take, HostError."""
    chain = open_chain(base)
    chain.close()
    if chain.size != size:
        raise SnapshotError(f"{base}: memory of the guest came or went since: take a whole snapshot")
    if len(chain.places) >= MOST:
        raise SnapshotError(f"{base}: there are {MOST} snapshots one over the other already: take a whole one")
    if _is_one_of(path, chain.places):
        raise SnapshotError(f"{path}: the snapshot there is needed by the new one: give that another directory")
    return BaseOf(os.path.relpath(os.path.realpath(base), os.path.realpath(path)), chain.identity)


def _is_one_of(path: Path, places: list[Path]) -> bool:
    try:
        return any(path.exists() and path.samefile(place) for place in places)
    except OSError as exc:
        raise HostError("writing a snapshot", exc.errno or 0, path=str(path)) from exc
