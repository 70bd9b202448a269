"""A registry in a thread, which serves one layout as it is told to: elsewhere, for a token, wrongly, or not to the end."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

__all__ = ["TOKEN", "SimulatedRegistry"]

TOKEN = "a-token-of-the-registry"


class SimulatedRegistry:
    """`ways`: redirect (blobs are at another address), token (to be had anonymously), password (the token is me's, with the
    password secret), wrong (the last byte of each layer is), cut (layers end in the middle), endless."""

    def __init__(self, layout: Path, *ways: str) -> None:
        self.blobs = layout / "blobs/sha256"
        self.manifest = json.loads((layout / "index.json").read_text())["manifests"][0]
        self.ways = ways
        self.layers = {item["digest"] for item in json.loads(self.blob(self.manifest["digest"]))["layers"]}

    def blob(self, digest: str) -> bytes:
        return (self.blobs / digest.removeprefix("sha256:")).read_bytes()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its place, HOST:PORT."""
        registry = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.answer(registry)

            def do_HEAD(self) -> None:
                self.answer(registry)

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield f"127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody wants to know."""

    def answer(self, registry: SimulatedRegistry) -> None:
        place = f"http://{self.headers['Host']}"
        kind, _, what = self.path.partition("?")[0].rpartition("/")
        if what == "token":
            self._give_token(registry)
        elif kind == "/elsewhere":  # without a token: it is another's
            self._send_blob(registry, what)
        elif {"token", "password"} & {*registry.ways} and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            where = f'Bearer realm="{place}/token",service="registry",scope="repository:box:pull"'
            self._send(401, b"{}", {"WWW-Authenticate": where})
        elif kind.endswith("/manifests"):
            data = registry.blob(registry.manifest["digest"])
            said = {
                "Content-Type": registry.manifest["mediaType"],
                "Docker-Content-Digest": registry.manifest["digest"],
            }
            self._send(200, data, said)
        elif kind.endswith("/blobs") and "redirect" in registry.ways:
            self._send(307, b"", {"Location": f"{place}/elsewhere/{what}"})
        elif kind.endswith("/blobs"):
            self._send_blob(registry, what)
        else:
            self._send(200, b"{}", {"Docker-Distribution-Api-Version": "registry/2.0"})

    def _give_token(self, registry: SimulatedRegistry) -> None:
        wanted = "Basic " + base64.b64encode(b"me:secret").decode()
        if "password" in registry.ways and self.headers.get("Authorization") != wanted:
            self._send(401, b"{}", {})
        else:
            self._send(200, json.dumps({"token": TOKEN}).encode(), {"Content-Type": "application/json"})

    def _send_blob(self, registry: SimulatedRegistry, digest: str) -> None:
        data = registry.blob(digest)
        if "wrong" in registry.ways and digest in registry.layers:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if "endless" in registry.ways and digest in registry.layers:
            self._send_without_end()
            return
        is_cut = "cut" in registry.ways and digest in registry.layers
        self._send(200, data, {"Content-Type": "application/octet-stream"}, most=len(data) // 2 if is_cut else None)

    def _send_without_end(self) -> None:
        self._send(200, b"", {"Content-Type": "application/octet-stream"}, length=1 << 50)
        data = os.urandom(1 << 20)  # skopeo packs what is not
        with suppress(OSError):
            while True:
                self.wfile.write(data)
                time.sleep(0.02)  # no disk need be filled to show it

    def _send(
        self, code: int, data: bytes, headers: dict[str, str], *, most: int | None = None, length: int | None = None
    ) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data) if length is None else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:most])
