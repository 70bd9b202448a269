"""A sandbox: a guest whose root is an image, ready to run commands, and gone without a trace at the end of its block.

    async with aiovmm.sandbox(Image.from_oci("layout/"), memory="256M", disk="2G") as vm:
        done = await vm.run(["uname", "-a"])

The image is a read-only disk that all guests share; what this one writes goes to a disk of its own, and an overlay is both.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiovmm.architecture import host
from aiovmm.boot import load_kernel
from aiovmm.config import (
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    DiskConfig,
    FsConfig,
    MemoryConfig,
    PayloadConfig,
    VMConfig,
    VsockConfig,
)
from aiovmm.config.disk import ImageType
from aiovmm.config.text import to_size
from aiovmm.devices.port import PortDevice
from aiovmm.devices.virtio.net.passt import find_passt
from aiovmm.errors import ConfigError, HostError, StateError
from aiovmm.image import KernelFiles
from aiovmm.kvm import Kvm
from aiovmm.rootfs import BuiltImage, Image
from aiovmm.runtime.arguments import a_list
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.tasks import in_thread, opened_in_thread
from aiovmm.runtime.timeouts import check_seconds
from aiovmm.sandboxes.kernel import MODULES, find_sandbox_kernel, sandbox_initramfs
from aiovmm.sandboxes.network import Network
from aiovmm.sandboxes.publish import held, pairs
from aiovmm.sandboxes.scratch import LEAST, Scratch, make_scratch, prepare_scratch
from aiovmm.sandboxes.virtiofsd import Served, require, served
from aiovmm.sandboxes.volumes import Volume, socket_folder
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.vm import VM

__all__ = ["Sandbox", "sandbox"]

_numbers = itertools.count(1)
_MORE = {"disks", "fs"}  # of which it has some of its own, before those that are given


class Sandbox(VM):
    """A VM with an image as its root. Commands have what the image says of its own: environment, user, working directory, unless
    they are told otherwise. So have those of its forks; a snapshot does not know the image."""

    def __init__(
        self,
        config: VMConfig,
        image: BuiltImage | None = None,
        devices: Sequence[VirtioDevice] = (),
        ports: Sequence[PortDevice] = (),
        terminal: bool = False,
    ) -> None:
        super().__init__(config, devices=devices, ports=ports, terminal=terminal)
        self._image = image
        if image is not None:
            self._env = image.config.env
            self._cwd = image.config.workdir or None
            self._user = image.config.user or None
        self._published: dict[int, int] = {}

    @property
    def published(self) -> Mapping[int, int]:
        """Ports of the host's loopback and the guest's, as `publish` said; in place of 0 the port that was taken."""
        return MappingProxyType(self._published)

    @property
    def image(self) -> BuiltImage:
        """What its root is made of. Raises StateError for one that was restored."""
        if self._image is None:
            raise StateError(f"{self.name!r} is of a snapshot, which does not know its image")
        return self._image

    def _maker(self) -> Callable[..., Sandbox]:
        """Of sandboxes of the same image."""
        return partial(type(self), image=self._image)

    def _volume_ended(self, tag: str, error: HostError) -> None:
        self._journal.device_error(tag, error)


@asynccontextmanager
async def sandbox(
    image: Image | BuiltImage | str | os.PathLike[str],
    *,
    cpus: int | CpusConfig = 1,
    memory: str | int | MemoryConfig = "256M",
    disk: str | int | None = "2G",
    kernel: KernelFiles | None = None,
    name: str | None = None,
    timeout: float | None = 60.0,
    volumes: Sequence[Volume | str] = (),
    network: Network | bool = False,
    publish: Mapping[int, int] | Sequence[tuple[int, int]] | None = None,
    cmdline: str = "",
    on_start: Callable[[Sandbox], object] | None = None,
    **changes: Any,
) -> AsyncIterator[Sandbox]:
    """A guest with `image` as its root, once its agent is ready to run commands. At the end of the block it is killed, and what
    it has written is gone.

    `image`: an Image, or the path of an OCI layout, a directory, a tar archive, a file system. `memory` and `disk`: bytes, or
    text like "2G"; `disk` is the space for what it writes, None takes memory. `kernel`: None takes the host's, or Debian's cloud
    kernel. `timeout`: seconds until it is ready. `cmdline` is added to the kernel's command line; `changes` to the VMConfig, like
    `balloon=BalloonConfig(...)`; `disks` and `fs` come after those of the sandbox's own.

    `volumes`: directories of the host, Volume or "HOST:GUEST:ro". `network`: True gives it one by passt, see Network. `publish`:
    {port of the host's loopback: the guest's}, or pairs of them, by the agent, and without a network; 0 is any port, which
    `vm.published` tells. They are taken at once; who connects before the guest is ready waits. `on_start` is called with the
    guest when it begins to boot, whose console (`vm.serial.reader()`) can be followed from then on.

    Raises ImageError, HostError, ConfigError; BootTimeout, with the stage that the guest came to and what it printed, or
    AgentLost if it ended instead.
    """
    check_seconds(timeout, "sandbox(timeout=)")
    _check(image, "image", "an image: Image.from_oci(...), or a path", Image, BuiltImage, str, bytes, os.PathLike)
    if kernel is not None:
        _check(kernel, "kernel", "a kernel with its modules: KernelFiles(kernel, modules, release)", KernelFiles)
    wanted = _Wanted(f"sandbox-{next(_numbers)}" if name is None else name, cpus, memory, disk, cmdline, changes)
    _check(network, "network", "True, or Network(...)", Network, bool)
    wanted.network = Network() if network is True else network or None
    shared = [_volume(volume) for volume in a_list(volumes, "volumes", '["src:/src"]')]
    ports = pairs(publish)
    if on_start is not None and not callable(on_start):
        raise ConfigError("on_start", f"{on_start!r} cannot be called", "give a function of the sandbox, or None")
    async with AsyncExitStack() as stack:
        listeners = stack.enter_context(held(ports))
        source = image if isinstance(image, BuiltImage) else await in_thread("image", Image.of, image)
        files = await in_thread("sandbox: what it needs", _require, shared, wanted, kernel)
        initramfs = await in_thread("sandbox: initramfs", sandbox_initramfs, files)
        built = await stack.enter_async_context(_built(source))
        daemons = await stack.enter_async_context(_served(shared))
        wanted.volumes = list(zip(shared, daemons.devices, strict=True))
        async with daemons.needed():
            vm = await stack.enter_async_context(_started(wanted, files, initramfs, built))
            daemons.ended = vm._volume_ended
            vm._published = {listener.getsockname()[1]: port for listener, port in listeners}
            if on_start is not None:
                on_start(vm)
            await vm.agent.ready(timeout)
        for listener, port in listeners:
            await vm.agent.forwards.take(listener, port)
        yield vm


@asynccontextmanager
async def _built(image: Image | BuiltImage) -> AsyncIterator[BuiltImage]:
    """The image, kept from being pruned meanwhile."""
    if isinstance(image, BuiltImage):
        yield image
        return
    built = await image.build()
    try:
        yield built
    finally:
        built.close()


@asynccontextmanager
async def _served(volumes: Sequence[Volume]) -> AsyncIterator[Served]:
    """The daemons, whose sockets are in a folder of their own."""
    if not volumes:
        yield Served((), Path())
        return
    sockets = ExitStack()
    folder = await opened_in_thread(  # it waits for who sweeps, in any process
        "sandbox: sockets", lambda _: sockets.close(), sockets.enter_context, socket_folder()
    )
    try:
        async with served(volumes, folder) as daemons:
            yield daemons
    finally:
        await in_thread("sandbox: sockets", sockets.close)


@asynccontextmanager
async def _started(wanted: _Wanted, files: KernelFiles, initramfs: Path, image: BuiltImage) -> AsyncIterator[Sandbox]:
    """Once it runs, nothing of its scratch disk has a name."""
    async with AsyncExitStack() as stack:
        async with _scratch(wanted.scratch) as scratch:
            devices = () if wanted.network is None else (wanted.network.device(),)
            config = wanted.config(files, initramfs, image, scratch)
            vm = await stack.enter_async_context(Sandbox(config, image, devices))
        await vm.start()
        yield vm


@asynccontextmanager
async def _scratch(size: int | None) -> AsyncIterator[Path | None]:
    """The scratch disk, which has a name until the guest has it."""
    if size is None:
        yield None
        return
    scratch = await opened_in_thread("sandbox: disk", Scratch.close, make_scratch, size)
    try:
        yield scratch.path
    finally:
        await in_thread("sandbox: disk", scratch.close)


class _Wanted:
    """What was asked for, checked. Raises ConfigError."""

    def __init__(
        self,
        name: str,
        cpus: int | CpusConfig,
        memory: str | int | MemoryConfig,
        disk: str | int | None,
        cmdline: str,
        changes: dict[str, Any],
    ) -> None:
        self._name = name
        self._cpus = cpus if isinstance(cpus, CpusConfig) else CpusConfig(cpus)
        self._memory = memory if isinstance(memory, MemoryConfig) else MemoryConfig(_bytes("memory", memory))
        self.scratch = None if disk is None else _bytes("disk", disk)
        if self.scratch is not None and self.scratch < LEAST:
            raise ConfigError("disk", f"{self.scratch} bytes are too few", f"give at least {LEAST >> 20}M, or None")
        _check(name, "name", "a name", str)
        _check(cmdline, "cmdline", "text for the kernel's command line", str)
        if "vsock" in changes and changes["vsock"] is None:
            raise ConfigError("vsock", "None leaves no way to the agent", "leave it out, or say VsockConfig(...)")
        if "payload" in changes:
            raise ConfigError("payload", "is the sandbox's own", "kernel= and cmdline= say of it what can be said")
        self._cmdline = cmdline
        self._changes = {
            **changes,
            **{option: a_list(changes[option], option, "[...]") for option in _MORE & {*changes}},
        }
        self._bare(PayloadConfig(Path("kernel"))).with_changes(self._changes)  # before an image is fetched for it
        self.network: Network | None = None
        self.volumes: list[tuple[Volume, FsConfig]] = []

    def config(self, files: KernelFiles, initramfs: Path, image: BuiltImage, scratch: Path | None) -> VMConfig:
        """The guest's. The image is the first disk, as its init has it."""
        disks = [DiskConfig(path=image.path, readonly=True, image_type=ImageType.RAW)]
        words = [f"console={host().serial} quiet panic=-1", f"sandbox.modules={','.join(MODULES)}"]
        words += [f"sandbox.image={image.type}", f"sandbox.hostname={_hostname(self._name)}"]
        if scratch is not None:
            disks.append(DiskConfig(path=scratch, image_type=ImageType.RAW))
            words.append("sandbox.scratch=ext4")
        for volume, fs in sorted(self.volumes, key=lambda pair: pair[0].guest):  # one that is in another comes after it
            words.append(f"sandbox.volume={fs.tag}:{'ro' if volume.readonly else 'rw'}:{volume.guest}")
        words += self.network.words if self.network else []
        payload = PayloadConfig(files.kernel, initramfs, " ".join([*words, self._cmdline]).strip())
        config = replace(self._bare(payload), disks=tuple(disks), fs=tuple(fs for _, fs in self.volumes))
        more = {option: [*getattr(config, option), *self._changes[option]] for option in _MORE & {*self._changes}}
        return config.with_changes({**self._changes, **more}) if self._changes else config

    def _bare(self, payload: PayloadConfig) -> VMConfig:
        """Without what is only there once the image is."""
        return VMConfig(
            payload,
            cpus=self._cpus,
            memory=self._memory,
            serial=ConsoleConfig(ConsoleMode.NULL),
            vsock=VsockConfig(),
            name=self._name,
        )


def _bytes(option: str, size: object) -> int:
    if isinstance(size, str):
        return to_size(option, size)
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    raise ConfigError(option, f"{size!r} is no size", 'give bytes as a whole number, or text like "512M"')


def _check(value: object, option: str, what: str, *kinds: type) -> None:
    if not isinstance(value, kinds):
        raise ConfigError(option, f"{value!r} is not {what}")


def _require(volumes: Sequence[Volume], wanted: _Wanted, kernel: KernelFiles | None) -> KernelFiles:
    """That there is all for it, before an image is fetched, which may take minutes; the kernel. Blocking. Raises HostError,
    ConfigError, ImageError."""
    require(volumes)
    if wanted.network is not None:
        find_passt()
    Kvm.hold().close()
    if wanted.scratch is not None:
        prepare_scratch(wanted.scratch)
    files = find_sandbox_kernel() if kernel is None else kernel
    load_kernel(files.kernel)
    return files


def _volume(volume: object) -> Volume:
    if isinstance(volume, Volume):
        return volume
    _check(volume, "volumes", 'a volume: "HOST:GUEST", or Volume(...)', str)
    return Volume.parse(str(volume))


def _hostname(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9-]+", "-", name).strip("-")[:63] or "sandbox"
