"""vhost-user: devices whose queues another process serves (QEMU, docs/interop/vhost-user.rst).

Bytes and fds to messages: `framing`, `messages`, `payloads` (pure). The front end's conversation: `sequences` (pure), carried
out by `connection`. A device's back end over many connections: `frontend`; its life between DRIVER_OK and reset: `backend`.
The other side: `server_state` (pure) here, and its shell in `aiovmm.testing.vhost_user_backend`.
"""

from __future__ import annotations

from aiovmm.vhost_user.backend import Resume, VhostUserBackend
from aiovmm.vhost_user.frontend import Frontend, Timing

__all__ = ["Frontend", "Resume", "Timing", "VhostUserBackend"]
