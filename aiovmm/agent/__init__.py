"""What runs in a guest, from outside: commands, files and ports, by way of the agent, a small program in the guest.

wire, credit and request are the protocol, pure; link is its thin pump over a socket; agent keeps one to a guest.
process, run, files and forward are what users call. `guest` has the agent's own sources, in C; docs/agent.md describes
all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from aiovmm.agent.agent import Agent
    from aiovmm.agent.binary import agent_binary
    from aiovmm.agent.errors import (
        AgentError,
        AgentLost,
        BootTimeout,
        CommandFailed,
        CommandNotFound,
        CommandTimeout,
        GuestOSError,
        OutputTooLong,
    )
    from aiovmm.agent.process import Process
    from aiovmm.agent.run import Completed
    from aiovmm.agent.wire import AGENT_PORT

__all__ = [
    "AGENT_PORT",
    "Agent",
    "AgentError",
    "AgentLost",
    "BootTimeout",
    "CommandFailed",
    "CommandNotFound",
    "CommandTimeout",
    "Completed",
    "GuestOSError",
    "OutputTooLong",
    "Process",
    "agent_binary",
]

__getattr__ = lazy_names(
    __name__,
    {
        "aiovmm.agent.agent": "Agent",
        "aiovmm.agent.binary": "agent_binary",
        "aiovmm.agent.errors": "AgentError AgentLost BootTimeout CommandFailed CommandNotFound CommandTimeout "
        "GuestOSError OutputTooLong",
        "aiovmm.agent.process": "Process",
        "aiovmm.agent.run": "Completed",
        "aiovmm.agent.wire": "AGENT_PORT",
    },
)
