"""A network around this thread's: a router of another network namespace, which is a web server at several addresses."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.devices.virtio.netns import ip

__all__ = ["HERE", "HERE6", "NEAR", "OTHER", "PAGE", "WEB", "WEB6", "World", "digest", "inside", "world"]

WEB, WEB6, OTHER, HERE, HERE6 = "198.51.100.1", "2001:db8:1::1", "203.0.113.9", "198.51.100.2", "2001:db8:1::2"
"""The server's, two that are near and one that is not, and this side's."""
NEAR = ("198.51.100.0/24", "2001:db8:1::/64")
PAGE = bytes(range(256)) * 4096
"""What it serves at every path; what is posted to it is answered with its SHA-256."""

_SERVER = """
import hashlib, socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(bytes(range(256)) * 4096)

    def do_POST(self):
        self.answer(hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode())

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        print(self.path, flush=True)

class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6

server = Server(("::", 80), Handler)
print("ready", flush=True)
server.serve_forever()
"""


class World:
    """Its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> list[str]:
        """The paths that were asked for."""
        self._process.kill()
        return self._process.communicate()[0].split()


def inside(process: int, command: str) -> list[str]:
    """The command line that runs `command` in the network of a process."""
    return ["nsenter", f"--net=/proc/{process}/ns/net", *command.split()]


@contextmanager
def world() -> Iterator[World]:
    """Until its end; it is this network's default route meanwhile. As root."""
    command = ["unshare", "--net", sys.executable, "-c", _SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            _join(process.pid)
            yield World(process)
        finally:
            process.kill()
            with suppress(subprocess.CalledProcessError):  # it has gone with the other network already
                ip("link delete world0")


def _join(process: int) -> None:
    ip(f"link add world0 type veth peer name here0 netns {process}")
    for address in (f"{HERE}/24", f"{HERE6}/64 nodad"):
        ip(f"address add {address} dev world0")
    ip("link set world0 up")
    there = [f"address add {WEB}/24 dev here0", f"address add {WEB6}/64 dev here0 nodad"]
    there += [f"address add {OTHER}/32 dev lo", "link set lo up", "link set here0 up"]
    for command in there:
        subprocess.run(inside(process, f"ip {command}"), check=True, capture_output=True)
    ip(f"route add default via {WEB}")
    ip(f"-6 route add default via {WEB6}")


def digest(data: bytes) -> str:
    """As the server has it."""
    return hashlib.sha256(data).hexdigest()
