"""Sandboxes: guests whose root is an image, that run commands and leave nothing behind."""

from aiovmm.sandboxes.guest import Sandbox, sandbox

__all__ = ["Sandbox", "sandbox"]
