"""python -m tests.fuzz.drive TARGET [libFuzzer's options] [CORPUS]: one target in Python under Atheris."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    name = sys.argv[1]
    with atheris.instrument_imports(include=["aiovmm"]):
        from tests.fuzz.targets import load

        target = load(name)
    sys.stderr.flush()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.run)
    atheris.Fuzz()
    os._exit(0)


if __name__ == "__main__":
    main()
