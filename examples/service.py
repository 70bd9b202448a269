"""Guests behind HTTP, with aiohttp: make them, run commands and move files in them, watch their consoles, end them.

    pip install 'aiovmm[service]'
    python -m examples.service layout/ --port 8080

    POST   /vms                    {"memory": "256M"}: a guest, once it is ready: {"id": ...}
    GET    /vms                    all of them, with statistics
    POST   /vms/ID/exec            {"command": ["uname", "-a"], "timeout": 5}: {"returncode", "stdout", "stderr"}, in base64
    GET    /vms/ID/files?path=/a   a file's bytes
    PUT    /vms/ID/files?path=/a   writes it
    GET    /vms/ID/console         a WebSocket: what the console prints
    DELETE /vms/ID                 ends it

SIGTERM ends all. It listens on the loopback only: whoever can ask it can use the host's memory, so put in front of it what knows
your users.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import secrets
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

import aiovmm
from aiovmm import CommandNotFound, CommandTimeout, Image

Make = Callable[..., AbstractAsyncContextManager[Any]]
MOST_TIME = 600.0
LARGEST_FILE = 64 << 20


class Service:
    """`make` gives a guest as an async context manager: `aiovmm.sandbox` with an image. At most `most` live at a time."""

    def __init__(self, make: Make, most: int = 64) -> None:
        self._make = make
        self._most = most
        self._places = 0
        self._guests: dict[str, tuple[Any, asyncio.Event, asyncio.Task[None]]] = {}

    def app(self) -> web.Application:
        """The application; when it is cleaned up all guests are ended."""
        app = web.Application(middlewares=[errors], client_max_size=LARGEST_FILE)
        app.add_routes(
            [
                web.post("/vms", self.create),
                web.get("/vms", self.list),
                web.delete("/vms/{id}", self.delete),
                web.post("/vms/{id}/exec", self.execute),
                web.get("/vms/{id}/files", self.read),
                web.put("/vms/{id}/files", self.write),
                web.get("/vms/{id}/console", self.console),
            ]
        )
        app.on_shutdown.append(self.end_all)
        return app

    async def create(self, request: web.Request) -> web.Response:
        """A guest is entered and left by one task, its own, whoever asks for what."""
        wanted = await request.json() if request.can_read_body else {}
        if not isinstance(wanted, dict) or not wanted.keys() <= {"memory", "cpus", "disk"}:
            raise web.HTTPBadRequest(text="an object with memory, cpus and disk, or nothing")
        if self._places >= self._most:
            raise web.HTTPTooManyRequests(text=f"there are {self._most} guests already")
        id_, end = secrets.token_hex(8), asyncio.Event()
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._places += 1
        task = asyncio.create_task(self._live(id_, wanted, ready, end))
        try:
            vm = await asyncio.shield(ready)
        except asyncio.CancelledError:  # the client has gone
            task.cancel()
            raise
        self._guests[id_] = (vm, end, task)
        task.add_done_callback(lambda _task: self._guests.pop(id_, None))
        return web.json_response({"id": id_}, status=201)

    async def _live(self, id_: str, wanted: dict[str, Any], ready: asyncio.Future[Any], end: asyncio.Event) -> None:
        try:
            async with AsyncExitStack() as stack:
                vm = await stack.enter_async_context(self._make(name=id_, **wanted))
                ready.set_result(vm)
                waits = [asyncio.ensure_future(end.wait()), asyncio.ensure_future(vm.wait())]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
        except BaseException as exc:
            if ready.done():
                raise
            ready.set_exception(exc)
        finally:
            self._places -= 1

    async def list(self, _request: web.Request) -> web.Response:
        """What each has done until now."""
        rows = []
        for id_, (vm, _, _) in self._guests.items():
            stats = vm.stats()
            about = {"uptime": stats.uptime, "memory": stats.memory, "given_back": stats.given_back}
            rows.append({"id": id_, "state": vm.state.value, **about, "devices": sorted(stats.devices)})
        return web.json_response(rows)

    async def delete(self, request: web.Request) -> web.Response:
        """Returns when it is gone."""
        _, end, task = self._find(request)
        end.set()
        await asyncio.wait([task])
        return web.Response(status=204)

    async def execute(self, request: web.Request) -> web.Response:
        """If the client goes, the command is ended: aiohttp is told to cancel us."""
        wanted = await request.json()
        match wanted:
            case {"command": [str(), *_] as command} if all(isinstance(word, str) for word in command):
                pass
            case _:
                raise web.HTTPBadRequest(text='an object with "command": a list of texts')
        limit = min(float(wanted.get("timeout", MOST_TIME)), MOST_TIME)
        data = base64.b64decode(wanted.get("input", ""), validate=True)
        try:
            done = await self._find(request)[0].run(command, timeout=limit, input=data)
        except CommandTimeout as exc:
            return web.json_response({"error": "timeout", **output(exc.stdout, exc.stderr)}, status=408)
        except CommandNotFound as exc:
            return web.json_response({"error": str(exc)}, status=404)
        return web.json_response({"returncode": done.returncode, **output(done.stdout, done.stderr)})

    async def read(self, request: web.Request) -> web.Response:
        """A file's bytes."""
        try:
            files = self._find(request)[0].files
            return web.Response(body=await files.read(request.query["path"], limit=LARGEST_FILE))
        except FileNotFoundError as exc:
            raise web.HTTPNotFound(text=str(exc)) from exc

    async def write(self, request: web.Request) -> web.Response:
        """Its new content."""
        await self._find(request)[0].files.write(request.query["path"], await request.read())
        return web.Response(status=204)

    async def console(self, request: web.Request) -> web.WebSocketResponse:
        """What it has printed, and what it prints, as binary messages; what the client sends is typed."""
        vm = self._find(request)[0]
        socket = web.WebSocketResponse(heartbeat=30)
        await socket.prepare(request)
        async with asyncio.TaskGroup() as group:
            printing = group.create_task(self._print(vm, socket))
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    vm.serial.write(message.data)
            printing.cancel()
        return socket

    async def _print(self, vm: Any, socket: web.WebSocketResponse) -> None:
        reader = vm.serial.reader()
        try:
            while data := await reader.read():
                await socket.send_bytes(data)
        finally:
            reader.close()
        await socket.close()

    async def end_all(self, _app: web.Application) -> None:
        """All at once."""
        tasks = [task for _, _, task in self._guests.values()]
        for _, end, _ in self._guests.values():
            end.set()
        if tasks:
            await asyncio.wait(tasks)

    def _find(self, request: web.Request) -> tuple[Any, asyncio.Event, asyncio.Task[None]]:
        try:
            return self._guests[request.match_info["id"]]
        except KeyError:
            raise web.HTTPNotFound(text="there is no such guest") from None


def output(stdout: bytes, stderr: bytes) -> dict[str, str]:
    """Bytes as JSON can have them."""
    return {"stdout": base64.b64encode(stdout).decode(), "stderr": base64.b64encode(stderr).decode()}


@web.middleware
async def errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """What the client did wrong is 400, what the guest or the host did is 502; a sentence says what."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except (aiovmm.UsageError, ValueError, TypeError, KeyError) as exc:
        return web.json_response({"error": str(exc)}, status=400)
    except aiovmm.AiovmmError as exc:
        return web.json_response({"error": str(exc)}, status=502)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    try:
        image = Image.of(args.root)
        service = Service(lambda **wanted: aiovmm.sandbox(image, **wanted))
        web.run_app(service.app(), host="127.0.0.1", port=args.port, handler_cancellation=True)
    except (aiovmm.AiovmmError, OSError) as exc:  # no such root, or the port is taken
        sys.exit(str(exc))
