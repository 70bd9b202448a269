"""What programs that have given something up begin with."""

from __future__ import annotations

TRIED = """
import os

def tried(what, call):
    try:
        call()
    except OSError as exc:
        print(what + ":", os.strerror(exc.errno))
    else:
        print(what + ": done")
"""
