"""A vsock's unix socket as a guest's is, in front of an agent on this machine: `CONNECT port`, then the connection itself."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

from aiovmm.agent import AGENT_PORT

__all__ = ["HybridFront"]


class HybridFront:
    """Serves in a thread, since those who connect are other processes, or block this one's loop."""

    def __init__(self, path: Path, agent: Path) -> None:
        self._agent = agent
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += client.recv(1)
        far = socket.socket(socket.AF_UNIX)
        if line != b"CONNECT %d\n" % AGENT_PORT or far.connect_ex(str(self._agent)):
            client.close()
            return
        client.sendall(b"OK 1073741824\n")
        threading.Thread(target=_pump, args=(far, client), daemon=True).start()
        _pump(client, far)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
