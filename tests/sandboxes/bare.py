"""`sandbox()` as it is, but for its guest: one that boots no Linux, and whose agent is the program on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiovmm import BuiltImage, VsockConfig
from aiovmm.agent import Agent
from aiovmm.agent.place import UnixPlace
from aiovmm.image import KernelFiles
from aiovmm.rootfs.image import ImageConfig
from aiovmm.sandboxes import guest
from tests.vm.guest import config

__all__ = ["bare"]


def bare(monkeypatch: pytest.MonkeyPatch, folder: Path, agent: Path, does: str = "hi") -> dict[str, Any]:
    """What to give to `sandbox`. The guest does what `does` says (tests/guests/kernel.S)."""

    def of(self: guest._Wanted, *_: object) -> Any:
        return config(does, vsock=VsockConfig(), name=self._name)

    monkeypatch.setattr(guest._Wanted, "config", of)
    monkeypatch.setattr(guest, "sandbox_initramfs", lambda files: files.kernel)
    monkeypatch.setattr(guest.Sandbox, "_make_agent", lambda self: Agent(UnixPlace(agent)))
    image = folder / "image"
    image.touch()
    return {
        "image": BuiltImage(image, "erofs", ImageConfig({})),
        "kernel": KernelFiles(config(does).payload.kernel, None, "bare"),
        "disk": None,
    }
