"""Ways to have a sandbox: ours, and those of its peers from their wheels, each by the way that it has without a network.

boxlite 0.10: `SimpleBox(rootfs_path=LAYOUT)`; microsandbox 0.7: `Sandbox.create(image=Image.bind(DIRECTORY))`. They boot
kernels of their own.
"""

from __future__ import annotations

import importlib
import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

from aiovmm import VM, Template, sandbox
from aiovmm.image import KernelFiles
from aiovmm.rootfs import Image
from benchmarks.place import GUESTS

__all__ = ["KINDS", "OURS", "Kind"]

OURS = "aiovmm"
MIB = 256  # of each guest's memory


class Kind(Protocol):
    """`folder` has the root's files in `root`, and in `layout` as an OCI layout. A box is what `create` returns."""

    def __init__(self, folder: Path, release: str) -> None: ...

    async def create(self) -> Any:
        """A guest that is ready."""
        ...

    async def run(self, box: Any, *words: str) -> int:
        """A command to its end; how many bytes it has printed. Raises if it fails."""
        ...

    async def copy_in(self, box: Any, here: Path, there: str) -> None:
        """A file."""
        ...

    async def copy_out(self, box: Any, there: str, here: Path) -> None:
        """A file."""
        ...

    async def stop(self, box: Any) -> None:
        """It is gone."""
        ...


class Ours:
    """See Kind."""

    def __init__(self, folder: Path, release: str) -> None:
        self._image = Image.from_oci(folder / "layout")
        self._kernel = KernelFiles(GUESTS / release / "vmlinuz", GUESTS / release / "modules", release)
        self._stacks: dict[int, AsyncExitStack] = {}

    async def create(self) -> VM:
        """See Kind."""
        stack = AsyncExitStack()
        box = sandbox(self._image, memory=f"{MIB}M", kernel=self._kernel, timeout=None)
        return self._kept(await stack.enter_async_context(box), stack)

    def _kept(self, vm: VM, stack: AsyncExitStack) -> VM:
        self._stacks[id(vm)] = stack
        return vm

    async def freeze(self, box: VM) -> Template:
        """The box, which is gone then, as what `fork` takes."""
        return await box.freeze()

    async def fork(self, template: Template) -> VM:
        """As `create`."""
        stack = AsyncExitStack()
        vm = self._kept(await stack.enter_async_context(template.fork()), stack)
        await vm.resume()
        return vm

    async def run(self, box: VM, *words: str) -> int:
        """See Kind."""
        return len((await box.run(words, check=True)).stdout)

    async def copy_in(self, box: VM, here: Path, there: str) -> None:
        """See Kind."""
        await box.files.copy_in(here, there)

    async def copy_out(self, box: VM, there: str, here: Path) -> None:
        """See Kind."""
        await box.files.copy_out(there, here)

    async def stop(self, box: VM) -> None:
        """See Kind."""
        await self._stacks.pop(id(box)).aclose()


class Boxlite:
    """See Kind."""

    def __init__(self, folder: Path, release: str) -> None:
        self._module = importlib.import_module("boxlite")
        self._layout = folder / "layout"
        self._runtime = self._module.Boxlite(self._module.Options(home_dir=str(folder / "boxlite")))

    async def create(self) -> Any:
        """See Kind."""
        make = self._module.SimpleBox
        return await make(rootfs_path=str(self._layout), memory_mib=MIB, cpus=1, runtime=self._runtime).start()

    async def run(self, box: Any, *words: str) -> int:
        """See Kind."""
        done = await box.exec(*words)
        if done.exit_code:
            raise RuntimeError(f"{words} ended with {done.exit_code}: {done.stderr} {done.error_message or ''}")
        return len(done.stdout)

    async def copy_in(self, box: Any, here: Path, there: str) -> None:
        """See Kind."""
        await box.copy_in(str(here), there)

    async def copy_out(self, box: Any, there: str, here: Path) -> None:
        """See Kind."""
        await box.copy_out(there, str(here))

    async def stop(self, box: Any) -> None:
        """See Kind."""
        await box.stop()


class Microsandbox:
    """See Kind."""

    _numbers = itertools.count()

    def __init__(self, folder: Path, release: str) -> None:
        self._module = importlib.import_module("microsandbox")
        self._root = folder / "root"

    async def create(self) -> Any:
        """See Kind."""
        image = self._module.Image.bind(str(self._root))
        name = f"bench-{next(self._numbers)}"
        return await self._module.Sandbox.create(name, image=image, memory=MIB, cpus=1, ephemeral=True, replace=True)

    async def run(self, box: Any, *words: str) -> int:
        """See Kind."""
        done = await box.exec(words[0], [*words[1:]])
        if done.exit_code:
            raise RuntimeError(f"{words} ended with {done.exit_code}: {done.stderr_text}")
        return len(done.stdout_bytes)

    async def copy_in(self, box: Any, here: Path, there: str) -> None:
        """See Kind."""
        await box.fs.copy_from_host(str(here), there)

    async def copy_out(self, box: Any, there: str, here: Path) -> None:
        """See Kind."""
        await box.fs.copy_to_host(there, str(here))

    async def stop(self, box: Any) -> None:
        """See Kind."""
        await box.stop()


KINDS: dict[str, type[Any]] = {OURS: Ours, "boxlite": Boxlite, "microsandbox": Microsandbox}
