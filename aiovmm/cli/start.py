"""The start of `aiovmm run`: from the values of its options to the running guest, and its exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

from aiovmm.cli.arguments import build_config, check_outputs, check_seconds
from aiovmm.runtime.remarks import heard_by
from aiovmm.runtime.stdio import require_descriptors

__all__ = ["start"]

_DESCRIPTORS = 16
"""That many are in use before a guest without devices runs: uvloop's, the VM's and its vCPU's."""


def start(args: dict[str, Any], closed: Sequence[int]) -> None:
    """Run a guest to its end; raises SystemExit with the exit code. `closed`: standard descriptors that are not there."""
    restore = None
    remarks: list[str] = []
    if args["restore"] is None:
        with heard_by(remarks.append):
            config = build_config(args)
    else:
        from aiovmm.cli.restore import Restore  # for who asks

        restore = Restore.of(args)
        config = restore.config
    check_seconds("--stop-timeout", args["stop_timeout"])
    check_outputs(args["log_file"], args["control_socket"])
    gc.disable()  # what a start imports and makes is no garbage; the session enables it when the guest runs
    try:
        import asyncio

        import uvloop

        from aiovmm.cli.confinement import Confinement
        from aiovmm.cli.logs import configure_logging
        from aiovmm.cli.session import Session
        from aiovmm.runtime.log import Log

        if args["log_file"] is not None:
            from aiovmm.config.outputs import refuse_input

            refuse_input(config, "--log-file", args["log_file"])
        confinement = Confinement.of(args)
        confinement.hold_threads()
        configure_logging(args["verbose"], args["log_file"], args["log_format"])
        for text in remarks:
            Log().warning(text)
        session = Session(
            config,
            detach_keys=args["detach_keys"],
            stop_timeout=args["stop_timeout"],
            events_to=args["events_to"],
            monitor=args["event_monitor"],
            stays=args["no_shutdown"],
            closed=closed,
            confinement=confinement,
            restore=restore,
            control=args["control_socket"],
        )
        require_descriptors(_DESCRIPTORS)
        with asyncio.Runner(loop_factory=confinement.loop_factory(uvloop.new_event_loop)) as runner:
            sys.exit(runner.run(session.run()))
    finally:  # also where it never ran: whoever called this in his own process goes on
        gc.enable()
