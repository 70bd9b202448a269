"""`aiovmm run --rootfs ROOT -- COMMAND`: boots a guest with that root, runs the command, ends with its status."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiovmm.cli.exec import code_of, unless_signalled, variables
from aiovmm.cli.logs import configure_logging
from aiovmm.cli.messages import say
from aiovmm.cli.run_options import OPTIONS
from aiovmm.config import options as parse
from aiovmm.errors import ConfigError, UsageError
from aiovmm.runtime.tasks import opened_in_thread
from aiovmm.runtime.worker import Worker

if TYPE_CHECKING:
    from aiovmm.sandboxes import Network, Sandbox
    from aiovmm.sandboxes.listed import Defaults, Listed

__all__ = ["run_in_sandbox"]

_PATIENCE = 2.0  # seconds for storage to remove what was listed
_TAKEN = (
    *("--kernel", "--cmdline", "--cpus", "--memory", "--name", "--rng", "--balloon", "--net", "--pmem"),
    *("--user", "--host-user"),
)
"""Options of `aiovmm run` that mean something here, too; the rest is refused by name."""


def run_in_sandbox(given: dict[str, Any], args: dict[str, Any]) -> None:
    """`given` are the options that go with --rootfs, `args` all others. Raises SystemExit with the exit code, UsageError."""
    from aiovmm.cli.carry import require_terminal

    _refuse_others(args)
    job = _Job(given, args)
    if given["tty"]:
        require_terminal()
    if args["host_user"] is not None:
        _be(args["host_user"])
    configure_logging(args["verbose"])
    sys.exit(code_of(lambda: unless_signalled(job.run())))


def _be(user: str) -> None:
    """That user of the host, from the beginning: what is made for the guest is that user's, and so are programs for it. But
    /dev/kvm is had before. Raises ConfigError, HostError, KvmError."""
    from aiovmm.confine.identity import become, find, keep_from_gaining
    from aiovmm.kvm import Kvm

    identity = find(user, "--host-user")
    Kvm.hold()  # until this process ends
    keep_from_gaining()
    become(identity, "--host-user")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):  # root's, most likely; else whoever set them meant it so
        if not os.access(os.environ.get(name, ""), os.W_OK):
            os.environ.pop(name, None)


class _Job:
    """One command in one guest. Raises UsageError, ConfigError for what is said wrongly."""

    def __init__(self, given: dict[str, Any], args: dict[str, Any]) -> None:
        self._given = given
        self._name, self._kernel = args["name"], args["kernel"]
        self._words = list(given["words"])
        self._publish = [_ports(text) for text in given["publish"]]
        self._keeping: asyncio.Future[None] | None = None
        self._lists = Worker("list a guest")  # where that is kept storage may stand still
        self._network = _network(given)
        self._settings = _settings(args)
        self._how = {
            "env": variables(given["env"]),
            "user": given["user"],
            "cwd": given["cwd"],
            "pty": given["tty"] or None,
        }

    async def run(self) -> int:
        """The exit code."""
        from aiovmm.sandboxes.listed import PREPARING, RUNNING, Listed

        self._settings["kernel"] = await _kernel(self._kernel)
        about = self._name, str(self._given["rootfs"]), " ".join(self._words)
        entry = await opened_in_thread("list a guest", Listed.close, Listed, *about)
        try:
            await self._list(entry.tell, PREPARING)
            async with self._sandbox(entry) as vm:
                await self._list(entry.tell, RUNNING, vm.config.memory.size, vm.published)
                return await self._carry(vm)
        finally:
            if self._keeping is not None:
                self._keeping.cancel()
            await asyncio.wait([self._list(entry.close)], timeout=_PATIENCE)

    def _list(self, call: Callable[..., None], *args: Any) -> asyncio.Future[None]:
        """In a thread, after what was told before."""
        return self._lists.submit(partial(call, *args))

    def _boots(self, entry: Listed, vm: Sandbox) -> None:
        """From now on others find it: its console, and its agent once that is there."""
        from aiovmm.sandboxes.listed import BOOTING

        self._list(entry.default, self._defaults(vm))
        self._list(entry.tell, BOOTING, vm.config.memory.size, vm.published)
        self._keeping = asyncio.ensure_future(entry.keep(vm.serial, self._lists))
        if any(not host for host, _ in self._publish):
            for host, guest in vm.published.items():
                say(f"port {host} of 127.0.0.1 is the guest's port {guest}")

    def _defaults(self, vm: Sandbox) -> Defaults:
        """For commands that others run in it."""
        from aiovmm.sandboxes.listed import Defaults

        said, how = vm.image.config, self._how
        return Defaults(said.env, said.user or None, said.workdir or None).but(how["env"], how["user"], how["cwd"])

    def _sandbox(self, entry: Listed) -> AbstractAsyncContextManager[Sandbox]:
        from aiovmm.config import VsockConfig
        from aiovmm.sandboxes import sandbox

        given = self._given
        return sandbox(
            given["rootfs"],
            disk=None if given["scratch"] == "memory" else given["scratch"],
            volumes=given["volumes"],
            network=self._network,
            publish=self._publish,
            vsock=VsockConfig(socket=entry.folder / "vsock"),
            on_start=partial(self._boots, entry),
            **self._settings,
        )

    async def _carry(self, vm: Sandbox) -> int:
        from aiovmm.cli.carry import carry

        words = self._words or list(vm.image.config.command) or ["/bin/sh"]
        process = await vm.create_process(*words, ends=True, **self._how)
        return await carry(process, terminal=self._given["tty"], filtered=self._given["filtered"])


def _network(given: dict[str, Any]) -> Network | bool:
    """--allow has a network as --network has, of which it reaches that alone."""
    if not given["allow"]:
        return bool(given["network"])
    from aiovmm.sandboxes import Network

    return Network(allow=given["allow"])


async def _kernel(path: Path | None) -> Any:
    """A kernel of the user's, whose modules are where distributions put them, if it has any."""
    if path is None:
        return None
    from aiovmm.image import KernelFiles

    beside = path.parent / "modules"
    release = path.name.removeprefix("vmlinuz-")
    places = (beside, Path("/lib/modules") / release)
    return KernelFiles(path, next((place for place in places if place.is_dir()), None), release)


def _settings(args: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if args["cpus"] is not None:
        found["cpus"] = parse.parse_cpus(args["cpus"])
    if args["memory"] is not None:
        found["memory"] = parse.parse_memory(args["memory"])
    if args["cmdline"] is not None:
        found["cmdline"] = args["cmdline"]
    if args["name"] != "vm":
        found["name"] = args["name"]
    if args["rng"] is not None:
        found["rng"] = parse.parse_rng(args["rng"])
    if args["balloon"] is not None:
        found["balloon"] = parse.parse_balloon(args["balloon"])
    if args["net"]:
        found["nets"] = tuple(parse.parse_net(text) for text in args["net"])
    if args["pmem"]:
        found["pmems"] = tuple(parse.parse_pmem(text) for text in args["pmem"])
    return found


def _refuse_others(args: dict[str, Any]) -> None:
    for option in OPTIONS:
        value = args.get(option.key)
        if option.name not in _TAKEN and value not in (option.default, None, (), False):
            raise ConfigError(option.name, "does not go with --rootfs", "boot a kernel with --kernel to have it")


def _ports(text: str) -> tuple[int, int]:
    host, _, guest = text.rpartition(":")
    try:
        ports = int(host or guest), int(guest)
    except ValueError:
        ports = (0, 0)
    if not 0 <= ports[0] < 65536 or not 0 < ports[1] < 65536:
        raise UsageError(
            f"--publish {text!r}: say HOST_PORT:GUEST_PORT, like 8080:80, or 0:80 for any port of the host's"
        )
    return ports
