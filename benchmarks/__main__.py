"""`python -m benchmarks NAME` runs one benchmark; without a name it lists them; `--nested` first: in the nested host."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path


def names() -> dict[str, str]:
    """Benchmark modules and the first line of what they say of themselves."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in ("__main__", "harness"):
            text = Path(__file__).with_name(f"{module.name}.py").read_text()
            found[module.name] = text.split('"""')[1].split("\n")[0]
    return found


def run_nested(arguments: list[str]) -> int:
    """The same command in the nested host, which has no compiler: the C floor is built here and brought along."""
    from benchmarks.boot import build_floor

    kvmhost = [sys.executable, "-m", "tests.kvmhost"]
    with tempfile.TemporaryDirectory() as name:
        floor = build_floor(Path(name))
        subprocess.run([*kvmhost, "put", str(floor), "/root/floor"], check=True)
    inside = [
        "--env",
        "AIOVMM_FLOOR=/root/floor",
        "--cwd",
        "/root/aiovmm",
        "--",
        "python",
        "-m",
        "benchmarks",
        *arguments,
    ]
    return subprocess.run([*kvmhost, "run", "--timeout", "3000", *inside], check=False).returncode


def main() -> int:
    """Entry point."""
    if sys.argv[1:2] == ["--nested"]:
        return run_nested(sys.argv[2:])
    if len(sys.argv) < 2 or sys.argv[1] not in names():
        for name, text in names().items():
            print(f"{name:20} {text}")
        return 0 if len(sys.argv) < 2 else 2
    name = sys.argv.pop(1)
    result = importlib.import_module(f"benchmarks.{name}").main()
    return int(result or 0)


if __name__ == "__main__":
    sys.exit(main())
