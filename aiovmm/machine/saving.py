"""What a VM is saved as, and made of again: snapshots, templates (docs/snapshots.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from aiovmm.devices.port import PortDevice
    from aiovmm.snapshot.received import Pages
    from aiovmm.snapshot.taking import Snapshot
    from aiovmm.snapshot.template import Template
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

__all__ = ["Saving"]


class Saving:
    """Nothing of what does it is imported before somebody asks for it."""

    async def snapshot(
        self, path: os.PathLike[str] | str, *, base: os.PathLike[str] | str | None = None, track: bool = False
    ) -> Snapshot:
        """Write all that the guest is to the directory `path`; it stands still meanwhile. One that is there is replaced once the
        new one is whole. Raises StateError, SnapshotError for what cannot be saved, by its name, HostError; the guest goes on.

        With `track` it is known from then on what the guest and its devices write to memory, and the next snapshot may be an
        increment: with the directory of this one as `base` it has only those pages, and needs that one to be restored. So may
        be one over the snapshot that the guest was restored or forked from. Each increment can be the base of the next.
        """
        from aiovmm.snapshot.taking import path_of, take

        return await take(cast("VM", self), path_of(path), base=None if base is None else path_of(base), track=track)

    @classmethod
    def restore(
        cls,
        path: os.PathLike[str] | str,
        *,
        name: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        devices: Sequence[VirtioDevice] = (),
        ports: Sequence[PortDevice] = (),
        prefault: bool = False,
        verify: bool = False,
        pages: Pages | None = None,
        within: os.PathLike[str] | str | None = None,
    ) -> AbstractAsyncContextManager[Self]:
        """The guest of a snapshot, paused where it stood: `async with VM.restore(path) as vm: await vm.resume()`.

        `overrides` are fields of its VMConfig that are to be otherwise: disks, nets, vsock and consoles elsewhere. `devices` and
        `ports` are the program's own, as they were. Memory is read as the guest touches it, or all of it before, with `prefault`;
        `verify` reads it to compare its checksum. With `pages`, an async iterator of (offset, bytes) in any order, it comes from
        there, all of it before the guest is built, and is compared: the directory needs no more than its state. `within` is for
        snapshots that others have made: what one names on this host, and `overrides` do not replace, is below that directory, or
        the snapshot is refused with nothing of it opened. Raises SnapshotError, ConfigError, HostError, and what `pages` raises,
        when it is entered.
        """
        from aiovmm.snapshot.restoring import restored
        from aiovmm.snapshot.taking import path_of

        return restored(  # type: ignore[type-var]
            cls,
            path_of(path),
            name=name,
            overrides={} if overrides is None else _overrides(overrides),
            devices=devices,
            ports=ports,
            prefault=prefault,
            verify=verify,
            pages=pages,
            within=None if within is None else path_of(within),
        )

    def _maker(self) -> Callable[..., VM]:
        """What makes its forks, called as its class is: `(config, devices=, ports=, terminal=)`. It does not hold this one."""
        return cast("type[VM]", type(self))

    async def freeze(self) -> Template:
        """Stop the guest for good, and have it as a template of any number of forks. Raises StateError, SnapshotError for what
        cannot be saved, by its name (the guest goes on), HostError."""
        from aiovmm.snapshot.template import freeze

        return await freeze(cast("VM", self))


def _overrides(given: Mapping[str, Any]) -> Mapping[str, Any]:
    from aiovmm.runtime.arguments import a_mapping  # for who gives some

    return a_mapping(given, "overrides", '{"serial": ConsoleConfig()}')
