"""The first life of a guest with work for each device: `python -m tests.system.first_life FOLDER RELEASE`.

It is saved in FOLDER/0, and what it wrote to hvc0 is in FOLDER/0.console. The lives after it are `tests.system.life`'s.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from aiovmm import VM
from tests.system.conftest import Guests
from tests.system.life import Done, Received, configured, initramfs, live


async def first_life(folder: Path, release: str) -> Done:
    guests, received = Guests({release: folder / "initramfs"}, {}), Received()
    image = initramfs(guests, release, folder)
    async with await asyncio.start_server(received.serve, "0.0.0.0", 0) as server:
        async with VM(configured(guests, release, image, folder / "disk", cpus=2)) as vm:
            done, console = await live(vm, folder / "0", begin=server.sockets[0].getsockname()[1])
        received.close()
    await asyncio.to_thread((folder / "0.console").write_bytes, console)
    return done


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(first_life(Path(sys.argv[1]), sys.argv[2])))))
