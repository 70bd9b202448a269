"""Each device that there is tells its state, or why it cannot."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import aiovmm.devices
import aiovmm.machine
import aiovmm.vfio
from aiovmm.pci.function import PciFunction
from aiovmm.virtqueue.device import VirtioDevice


def _classes(base: type) -> list[type]:
    """Those of the package that derive from `base`, and that there are objects of."""
    for package in (aiovmm.devices, aiovmm.machine, aiovmm.vfio):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found: list[type] = []
    waiting: list[type] = [base]
    while waiting:
        subclasses: list[type] = waiting.pop().__subclasses__()
        for cls in subclasses:
            waiting.append(cls)
            if (
                cls.__module__.startswith("aiovmm.")
                and not inspect.isabstract(cls)
                and not cls.__name__.startswith("_")
            ):
                found.append(cls)
    return sorted(found, key=lambda cls: cls.__qualname__)


@pytest.mark.parametrize("cls", _classes(VirtioDevice), ids=lambda cls: cls.__name__)
def test_a_virtio_device_tells_its_state(cls: type[VirtioDevice]) -> None:
    told = cls.save is not VirtioDevice.save and cls.load is not VirtioDevice.load
    assert told is not hasattr(cls, "make_backend"), "of one that another process serves the transport says why not"


@pytest.mark.parametrize("cls", _classes(PciFunction), ids=lambda cls: cls.__name__)
def test_a_function_tells_its_state(cls: type[PciFunction]) -> None:
    assert cls.save is not PciFunction.save or "why_not_saved" in vars(cls)
