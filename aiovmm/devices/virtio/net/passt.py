"""passt as back end: a network for guests of unprivileged users (https://passt.top).

passt translates between the guest's Ethernet frames and ordinary sockets of the host, so that nothing has to be configured
there: the guest gets the host's own address by DHCP, and reaches what the host reaches. It speaks the stream framing of QEMU.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable, Coroutine, Sequence
from errno import ECHILD, ENOENT
from typing import Any

from aiovmm.devices.virtio.net.backend import NetBackend
from aiovmm.devices.virtio.net.port import Port
from aiovmm.devices.virtio.net.sockets import SocketBackend
from aiovmm.errors import HostError, not_started
from aiovmm.runtime.child import Child

__all__ = ["PasstBackend", "find_passt"]

_BUFFER = 4 << 20  # bytes of socket buffer that passt's own documentation recommends at most; the kernel grants less
_LAST_WORDS = 4096  # bytes of its standard error that are kept
_PATIENCE = 2.0  # seconds until a passt whose guest is gone is killed


class PasstBackend(NetBackend):
    """A passt process of its own. `arguments` go to it, such as `-t 2222:22` to forward a TCP port of the host; `program` is its
    path or name. When it dies the guest's link goes down. `relay(guest, passt)`: carries frames between two stream sockets,
    which it closes at its end; without one the guest's frames go to passt as they are."""

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        program: str = "passt",
        mtu: int | None = None,
        relay: Callable[[socket.socket, socket.socket], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.mtu = mtu
        self._relay = relay
        self._relaying: asyncio.Task[None] | None = None
        self.arguments = tuple(arguments)
        self._program = program
        self._socket: SocketBackend | None = None
        self._process: Child | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def ports(self) -> Sequence[Port]:
        """The one, while it runs."""
        return self._socket.ports if self._socket is not None else ()

    @property
    def pid(self) -> int | None:
        """passt's process id."""
        return self._process.pid if self._process is not None else None

    async def open(self) -> None:
        """Start passt. Raises HostError."""
        if self._socket is not None:
            return
        program = find_passt(self._program)
        ours, theirs = _pair()
        self._socket = SocketBackend(ours if self._relay is None else self._relayed(ours), mtu=self.mtu)
        command = [program, "--foreground", "--quiet", "--fd", str(theirs.fileno())]
        command += ["--mtu", str(self.mtu)] if self.mtu is not None else []
        try:
            with theirs:
                fds = (theirs.fileno(),)
                self._process = Child([*command, *self.arguments], pass_fds=fds, last_words=_LAST_WORDS)
        except OSError as exc:
            await self.close()
            raise not_started("start passt", exc, program) from exc
        self._watch = asyncio.get_running_loop().create_task(self._follow(self._process), name="passt")

    def _relayed(self, passt: socket.socket) -> socket.socket:
        """The guest's end of a way to `passt` through the relay."""
        assert self._relay is not None
        ours, theirs = _pair()
        for sock in (passt, theirs):
            sock.setblocking(False)
        self._relaying = asyncio.get_running_loop().create_task(self._relay(theirs, passt), name="passt: relay")
        self._relaying.add_done_callback(self._relay_ended)
        return ours

    def _relay_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            hint = "the guest has no network until its VM is started anew"
            self.on_error(HostError(f"what is between the guest and passt has failed: {error!r}", ECHILD, hint))

    async def _follow(self, process: Child) -> None:
        """Until it ends, which is told with its last words: the guest sees no more of it than silence."""
        code = await process.wait()
        said = process.complaint(_LAST_WORDS) or "it said nothing"
        how = f"with code {code}" if code >= 0 else f"by signal {-code}"
        hint = "the guest has no network until its VM is started anew"
        self.on_error(HostError(f"passt has ended {how}, saying: {said}", ECHILD, hint))

    async def close(self) -> None:
        """End it: it goes when its socket closes, or is killed. Idempotent."""
        if self._socket is not None:
            await self._socket.close()
            self._socket = None
        if self._relaying is not None:
            self._relaying.cancel()
            await asyncio.wait([self._relaying])
            self._relaying = None
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
            self._watch = None
        process, self._process = self._process, None
        if process is not None:
            await process.aclose_after(_PATIENCE)


def find_passt(program: str = "passt") -> str:
    """Its path. Raises HostError if it is not installed."""
    found = shutil.which(program)
    if found is None:
        raise HostError("start passt", ENOENT, "install it: apt-get install passt", program)
    return found


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return pair
