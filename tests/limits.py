"""How long tests wait for what comes at once as a rule. Such a limit says that something hangs, and nothing of how fast it is:
the machine may be busy, and the native code sanitized."""

from __future__ import annotations

__all__ = ["HANGS"]

HANGS = 50.0
"""Seconds that nothing takes. Less than the 60 that a guest has patience for other programs: to wait so long is to hang, too."""
