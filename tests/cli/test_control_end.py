"""The control socket of a process that ends while somebody asks."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aiovmm.cli.control import listening, serve


def test_a_request_that_the_end_interrupts_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nobody: Any = None  # nothing is asked of the VM

    async def main() -> None:
        listener = stack.enter_context(listening(tmp_path / "control"))
        assert listener is not None
        serving = asyncio.create_task(serve(nobody, listener, nobody))
        _, writer = await asyncio.open_unix_connection(tmp_path / "control")
        while len(asyncio.all_tasks()) < 3:  # noqa: ASYNC110 - it waits for what is asked
            await asyncio.sleep(0)
        writer.write(b"half a li")
        for _ in range(10):  # it has begun to
            await asyncio.sleep(0)
        serving.cancel()

    with ExitStack() as stack:
        asyncio.run(main())
    assert not os.path.lexists(tmp_path / "control")
    assert [record.getMessage() for record in caplog.records] == []
