"""The HTTP service, with a real client. The guests are machines on this host's KVM; what they are asked is answered by the real
agent, which runs beside them, for that KVM boots no Linux."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from aiovmm import VM, VMConfig
from aiovmm.agent import Agent
from aiovmm.agent.place import UnixPlace
from examples.service import Service
from tests.agent.conftest import Guest, guest
from tests.limits import HANGS
from tests.vm.conftest import emulated
from tests.vm.guest import config
from tests.vm.remains import Remains

__all__ = ["emulated", "guest"]

pytestmark = pytest.mark.kvm


class WithAgent(VM):
    """Its agent is the one at `path`."""

    def __init__(self, settings: VMConfig, path: Path) -> None:
        super().__init__(settings, terminal=False)
        self._path = path

    def _make_agent(self) -> Agent:
        return Agent(UnixPlace(self._path))


@pytest.fixture
async def client(guest: Guest) -> AsyncIterator[TestClient[Any, Any]]:
    @asynccontextmanager
    async def make(name: str, **_wanted: object) -> AsyncIterator[VM]:
        async with WithAgent(config("hx", name=name), guest.path) as vm:
            await vm.start()
            await vm.agent.ready(10)
            yield vm

    server = TestServer(Service(make, most=2).app(), handler_cancellation=True)
    async with TestClient(server) as client:
        yield client


async def created(client: TestClient[Any, Any]) -> str:
    async with client.post("/vms", json={"memory": "64M"}) as answer:
        assert answer.status == 201
        return str((await answer.json())["id"])


def decoded(said: dict[str, str], name: str) -> bytes:
    return base64.b64decode(said[name])


async def test_a_guest_from_its_making_to_its_end(client: TestClient[Any, Any]) -> None:
    id_ = await created(client)
    async with client.post(
        f"/vms/{id_}/exec", json={"command": ["sh", "-c", "echo out; echo err >&2; exit 3"]}
    ) as answer:
        said = await answer.json()
    assert (said["returncode"], decoded(said, "stdout"), decoded(said, "stderr")) == (3, b"out\n", b"err\n")
    async with client.get("/vms") as answer:
        (row,) = await answer.json()
    assert (row["id"], row["state"]) == (id_, "running")
    async with client.delete(f"/vms/{id_}") as answer:
        assert answer.status == 204
    async with client.get("/vms") as answer:
        assert await answer.json() == []
    async with client.post(f"/vms/{id_}/exec", json={"command": ["true"]}) as answer:
        assert answer.status == 404


async def test_a_command_that_takes_too_long_gives_its_output_so_far(client: TestClient[Any, Any]) -> None:
    wanted = {"command": ["sh", "-c", "echo first; sleep 100"], "timeout": 0.5}
    async with client.post(f"/vms/{await created(client)}/exec", json=wanted) as answer:
        assert answer.status == 408
        assert decoded(await answer.json(), "stdout") == b"first\n"


async def test_a_client_that_goes_ends_its_command(client: TestClient[Any, Any], guest: Guest) -> None:
    id_ = await created(client)
    task = asyncio.create_task(client.post(f"/vms/{id_}/exec", json={"command": ["sleep", "1000"]}))
    await guest.busy()
    before = guest.descriptors
    task.cancel()
    await asyncio.wait([task])
    await guest.idle(before)


async def test_files(client: TestClient[Any, Any], tmp_path: Path) -> None:
    id_, data = await created(client), os.urandom(3 << 20)
    where = {"path": str(tmp_path / "file")}
    async with client.put(f"/vms/{id_}/files", params=where, data=data) as answer:
        assert answer.status == 204
    assert (tmp_path / "file").read_bytes() == data
    async with client.get(f"/vms/{id_}/files", params=where) as answer:
        assert await answer.read() == data
    async with client.get(f"/vms/{id_}/files", params={"path": "/no/such"}) as answer:
        assert answer.status == 404


async def test_the_console(client: TestClient[Any, Any]) -> None:
    async with client.ws_connect(f"/vms/{await created(client)}/console") as socket:
        said = b""
        async with asyncio.timeout(HANGS):
            while b"h" not in said:
                said += (await socket.receive()).data


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/vms", b"no json", 400),
        ("/vms", b"[]", 400),
        ("/vms", b'{"kernel": "/etc/passwd"}', 400),
        ("/vms/ID/exec", b"{}", 400),
        ("/vms/ID/exec", b'{"command": "ls"}', 400),
        ("/vms/ID/exec", b'{"command": ["ls"], "timeout": "x"}', 400),
        ("/vms/ID/exec", b'{"command": ["ls"], "timeout": null}', 400),
        ("/vms/ID/exec", b'{"command": ["ls"], "input": "%%%"}', 400),
        ("/vms/ID/exec", b'{"command": ["ls"], "input": 5}', 400),
        ("/vms/ID/exec", b'{"command": ["no-such-program"]}', 404),
        ("/vms/other/exec", b'{"command": ["ls"]}', 404),
    ],
)
async def test_wrong_requests(client: TestClient[Any, Any], path: str, body: bytes, status: int) -> None:
    path = path.replace("ID", await created(client))
    async with client.post(path, data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == status


async def test_there_are_no_more_than_it_may_have(client: TestClient[Any, Any]) -> None:
    await created(client)
    await created(client)
    async with client.post("/vms") as answer:
        assert answer.status == 429


async def test_the_end_of_the_service_is_that_of_its_guests(guest: Guest) -> None:
    made: list[VM] = []

    @asynccontextmanager
    async def make(name: str) -> AsyncIterator[VM]:
        async with WithAgent(config("hx", name=name), guest.path) as vm:
            made.append(vm)
            await vm.start()
            yield vm

    async with TestClient(TestServer(Service(make).app())) as client:
        for _ in range(3):
            async with client.post("/vms") as answer:
                assert answer.status == 201
    assert [vm.status is not None for vm in made] == [True] * 3


async def test_sigterm_ends_it(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    command = (sys.executable, "-m", "examples.service", str(tmp_path / "root"), "--port", "0")
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    async with asyncio.timeout(HANGS):
        said = b""
        while b"Running on" not in said:
            said += await process.stdout.read(100)
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0


async def test_fifty_clients_each_with_a_guest_and_its_console() -> None:
    """By a socket, all at once: what one types comes back to him and to nobody else, and nothing is left of any."""

    @asynccontextmanager
    async def make(name: str, **_wanted: object) -> AsyncIterator[VM]:
        async with VM(config("hl", name=name), terminal=False) as vm:
            await vm.start()
            yield vm

    async def one(client: TestClient[Any, Any], number: int) -> None:
        id_ = await created(client)
        async with client.ws_connect(f"/vms/{id_}/console") as socket:
            said, word = b"", b"%d;" % number
            while not said.endswith(b"hello\n"):
                said += await socket.receive_bytes(timeout=60)
            assert said == b"hello\n"
            for _ in range(5):
                await socket.send_bytes(word)
                back = b""
                while len(back) < len(word):
                    back += await socket.receive_bytes(timeout=60)
                assert back == word
        async with client.delete(f"/vms/{id_}") as answer:
            assert answer.status == 204

    remains = await Remains.once_loop_has_streams()
    async with TestClient(TestServer(Service(make, most=50).app(), handler_cancellation=True)) as client:
        await asyncio.gather(*(one(client, number) for number in range(1000, 1050)))
        async with client.get("/vms") as answer:
            assert await answer.json() == []
    await remains.check()
