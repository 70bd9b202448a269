"""What of a VM can be changed while it is there: devices, processors, memory, limits (docs/hotplug.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.config import ConsoleConfig, ConsoleMode, HotplugMethod, LimitsConfig, PlacedConfig, VMConfig
from aiovmm.errors import ConfigError, StateError, UsageError
from aiovmm.lifecycle import VMState

if TYPE_CHECKING:
    from aiovmm.console import Console
    from aiovmm.machine.ending import Ending
    from aiovmm.machine.hotplug.devices import DeviceHotplug
    from aiovmm.machine.hotplug.modules import ModuleHotplug
    from aiovmm.machine.hotplug.processors import ProcessorHotplug
    from aiovmm.machine.limits import Limits
    from aiovmm.machine.release import Release
    from aiovmm.runtime.home import HomeLoop

__all__ = ["Changes"]

_PLACES = (ConsoleMode.PTY, ConsoleMode.SOCKET, ConsoleMode.FILE)


class Changes:
    """Nothing of what does it is imported before somebody asks for it."""

    _config: VMConfig
    _home: HomeLoop
    _ending: Ending
    _release: Release
    _serial: Console
    _console: Console
    _limits: Limits | None = None  # those that go by the clock, if there are any
    _hotplug: DeviceHotplug | None = None  # once something came or went
    _processors: ProcessorHotplug | None = None
    _modules: ModuleHotplug | None = None
    _adds_console: bool = False

    @property
    def name(self) -> str:
        """The VM's."""
        raise NotImplementedError

    def _not_there(self) -> str:
        """Why nothing can be asked of it."""
        raise NotImplementedError

    def _configured(self, config: VMConfig) -> None:
        self._config = config

    async def add(self, device: PlacedConfig, *, timeout: float | None = 30.0) -> str:
        """Plug in one more device, while the guest runs or before: `await vm.add(DiskConfig(path=...))`. Its id, by which
        `device` and `remove` know it: the configuration's, or disk1, net0 and so on.

        It returns when the guest has looked at the device, after at most `timeout` seconds (None: for ever; 0: it is not waited
        for, and neither is a guest that is paused). What is plugged in stays so over the guest's resets, and is in `config`.
        Raises ConfigError, HostError, UsageError, StateError, and HotplugTimeout for a guest that does not look; then the
        device is not there.
        """
        self._home.check()
        if (
            isinstance(device, ConsoleConfig)
            and device.mode in _PLACES
            and self._config.console.mode is ConsoleMode.OFF
        ):
            return await self._add_console(device, timeout)
        return await self._devices().add(device, timeout)

    async def _add_console(self, device: ConsoleConfig, timeout: float | None) -> str:
        """One that is joined to a place, which is open before the guest has it; `console.place` says where."""
        if self._adds_console:
            raise ConfigError("console", "is being added already, and a VM has one at most")
        self._adds_console = True  # the other's place is not to be left
        try:
            return await self._add_to_place(device, timeout)
        finally:
            self._adds_console = False

    async def _add_to_place(self, device: ConsoleConfig, timeout: float | None) -> str:
        from aiovmm.console.places import Places  # for who asks
        from aiovmm.runtime.tasks import finish

        places = self._release.places = self._release.places or Places(self._ending.device_failed)
        await places.leave("console")  # of one that the guest let go of late
        absent = self._console.appear()  # its place reads it as soon as that is open
        try:
            await places.join("console", self._console, device)
            return await self._devices().add(device, timeout)
        except BaseException:
            await finish(places.leave("console"))
            self._console.vanish(absent)
            raise

    async def remove(self, id_: str, *, timeout: float | None = 30.0, force: bool = False) -> None:
        """Ask the guest to let go of a device, and take it out, whoever plugged it in: `await vm.remove("disk1")`.

        Raises HotplugTimeout if the guest has not let go in `timeout` seconds (None: for ever): the device is in use and stays,
        until the guest does. With `force` it is taken out then all the same, as by pulling a plug, and the guest told afterwards:
        what it had under way on it is never answered. When this returns it has been closed. Raises KeyError, StateError,
        UsageError.
        """
        self._home.check()
        if not isinstance(id_, str):
            raise UsageError(f"remove({id_!r}): an id is text, like 'disk0'")
        await self._devices().remove(id_, timeout, force=force)
        coming = self._adds_console  # its place is joined before it is in the configuration
        if self._release.places is not None and self._config.console.mode is ConsoleMode.OFF and not coming:
            await self._release.places.leave("console")

    async def resize(
        self,
        *,
        cpus: int | None = None,
        memory: int | None = None,
        zone: str | None = None,
        timeout: float | None = 60.0,
    ) -> None:
        """Give the guest more or less: `cpus` processors, of CpusConfig.max; `memory` in bytes, what it was made with and what
        came since, up to MemoryConfig.hotplug_size more; or in `zone` alone, with the hotplug_size of that.

        It returns when the guest has it, or has given back what is too much, after at most `timeout` seconds (None: for ever;
        with virtio-mem, 0: it is not waited for, and neither is a guest that does not run). Raises HotplugTimeout for a guest
        that does not do it, with how far it has come, HotplugError for one that refuses; UsageError, StateError.
        """
        self._home.check()
        if memory is None and cpus is None:
            raise UsageError("resize() takes cpus=, memory= in bytes, or both")
        if cpus is not None:
            from aiovmm.machine.hotplug.processors import ProcessorHotplug  # for who asks

            self._processors = self._processors or ProcessorHotplug(self.name, self._ending, self._configured)
            await self._processors.resize(cpus, timeout)
        if memory is not None:
            await self._resize_memory(memory, timeout, zone)

    async def _resize_memory(self, size: int, timeout: float | None, zone: str | None) -> None:
        if self._config.memory.hotplug_method is HotplugMethod.VIRTIO_MEM:
            from aiovmm.machine.hotplug.memory import MemoryHotplug  # for who asks

            await MemoryHotplug(self.name, self._ending, self._configured).resize(size, timeout, zone)
        elif zone is not None:
            raise UsageError(f"resize(zone={zone!r}): zones grow by virtio-mem, say MemoryConfig(hotplug_method=)")
        else:
            from aiovmm.machine.hotplug.modules import ModuleHotplug  # likewise

            self._modules = self._modules or ModuleHotplug(self.name, self._ending, self._configured)
            await self._modules.resize(size, timeout)

    def _devices(self) -> DeviceHotplug:
        if self._hotplug is None:
            from aiovmm.machine.hotplug.devices import DeviceHotplug  # for who asks

            self._hotplug = DeviceHotplug(self.name, self._ending, self._configured)
        return self._hotplug

    @property
    def limits(self) -> LimitsConfig:
        """What it may at most, now."""
        return self._limits.config if self._limits is not None else self._config.limits

    def set_limits(self, **changes: float | None) -> None:
        """Change some of `limits`, by the names of LimitsConfig: `vm.set_limits(exits=5000, idle=None)`. They hold at once, and
        over resets; what it has lived counts. Raises ConfigError, StateError when it has ended."""
        from aiovmm.machine.limits import Limits  # for who has some

        self._home.check_thread()
        if self._ending.life.state is VMState.STOPPED:
            raise StateError(self._not_there())
        new = self.limits.changed(changes)
        if self._limits is None:
            self._limits = Limits(self._config.limits, self._ending, (self._serial, self._console))
            self._release.limits = self._limits
        self._limits.set(new)
