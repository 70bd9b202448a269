"""Sandboxes: guests whose root is an image, that run commands and leave nothing behind."""

from aiovmm.sandboxes.guest import Sandbox, sandbox
from aiovmm.sandboxes.network import Network
from aiovmm.sandboxes.volumes import Volume

__all__ = ["Network", "Sandbox", "Volume", "sandbox"]
