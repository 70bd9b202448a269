"""`python -m benchmarks [NAME...|all]` runs benchmarks and prints their tables; without a name it lists them.

Those that boot stock kernels run in the nested host, unless this is it already; `--nested` sends the others there too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from aiovmm import architecture
from benchmarks import curves, peers, place, report
from benchmarks.harness import ROUNDS, Options, Result
from benchmarks.programs import compile_programs

_JSON = "/tmp/benchmark.json"  # in the nested host, whose /tmp is its own


def modules() -> dict[str, ModuleType]:
    """The benchmarks by name: the modules that have `run`."""
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    found: dict[str, ModuleType] = {}
    for name in names:
        if name == "__main__":
            continue
        with suppress(ModuleNotFoundError):  # of a library that is not everywhere: the nested host has few
            found[name] = importlib.import_module(f"benchmarks.{name}")
    return {name: module for name, module in found.items() if hasattr(module, "run")}


def is_nested(module: ModuleType) -> bool:
    """Whether it boots stock kernels."""
    return bool(getattr(module, "NESTED", False))


Group = tuple[list[Result], dict[str, Any]]
"""Results and where they are from; `failed` there names the benchmarks that did not come to their end."""


def run_here(names: Sequence[str], options: Options) -> Group:
    """Run them one after the other, printing each table as soon as it is there. One that fails does not stop the others."""
    compile_programs()
    where = place.where()
    where["failed"] = []
    print(f"{place.title(where)}; {where['processor']}", flush=True)
    results = []
    for name in names:
        if getattr(modules()[name], "NEEDS_KVM", False) and not Path("/dev/kvm").exists():
            print(f"{name}: left out, for it needs /dev/kvm", flush=True)
            continue
        try:
            results += measured(name, options)
        except Exception:
            traceback.print_exc()
            where["failed"].append(name)
    return results, where


def measured(name: str, options: Options) -> list[Result]:
    """Its results, all of one attempt. In a nested host a guest that does not answer, any monitor's, may be the emulator's loss
    (tests/kvmhost/README.md): then there is another attempt."""
    for is_last in ("AIOVMM_KVMHOST" not in os.environ, True):
        results = []
        try:
            for result in modules()[name].run(options):
                print(report.table(result), flush=True)
                results.append(result)
        except TimeoutError:
            if is_last:
                raise
            traceback.print_exc()
            print(f"{name}: once more, from the beginning", flush=True)
        else:
            break
    return results


def run_nested(names: Sequence[str], options: Options, timeout: float, arch: str) -> Group:
    """The same in the nested host, which has no compiler: the programs are compiled here and go there with the tree."""
    compile_programs()
    peers.bring(dict.fromkeys(peer for name in names for peer in getattr(modules()[name], "PEERS", ())), arch)
    inside = ["python", "-m", "benchmarks", *names, "--json", _JSON, *as_arguments(options)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        outer = [sys.executable, "-m", "tests.kvmhost", "--arch", arch, "run"]
        outer += ["--timeout", str(timeout), "--pull", f"{_JSON}:{file}"]
        subprocess.run([*outer, "--", *inside], check=False)
        if not file.exists():
            raise SystemExit("the nested host gave no results")
        return load(file)


def load(file: Path) -> Group:
    """What `--json` wrote."""
    data = json.loads(file.read_text())
    return [Result.from_dict(result) for result in data["results"]], data["where"]


def as_arguments(options: Options) -> list[str]:
    """The command line that gives these options."""
    words = ["--rounds", str(options.rounds), "--release", options.release]
    words += ["--quick"] if options.quick else []
    words += ["--profile"] if options.profile else []
    return [*words, *(word for part in options.only for word in ("--only", part))]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    top.add_argument("names", nargs="*", metavar="NAME", help="benchmarks, or all")
    top.add_argument("--nested", action="store_true", help="run in the nested host what could run here too")
    top.add_argument(
        "--arch",
        default=architecture.host().name,
        choices=[known.name for known in architecture.ALL],
        help="of the nested host (%(default)s); another than this machine's has all of them run there",
    )
    top.add_argument("--rounds", type=int, help=f"default {ROUNDS}; 1 with --quick")
    top.add_argument("--quick", action="store_true", help="a short version: only shows that all works")
    top.add_argument("--only", action="append", default=[], metavar="PART", help="only rows with this in their names")
    top.add_argument(
        "--profile", action="store_true", help="what threads and KVM did meanwhile, of rows of guests in turn"
    )
    top.add_argument("--release", default="6.1", help="the guest's kernel (%(default)s)")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    top.add_argument("--markdown", type=Path, metavar="FILE", help="and a table for a document there")
    top.add_argument("--svg", type=Path, metavar="FILE", help="and a plot of the ratios there")
    top.add_argument(
        "--curves", type=Path, metavar="FILE", help="and a plot there of what was measured of several numbers of guests"
    )
    top.add_argument(
        "--from", type=Path, action="append", default=[], dest="files", metavar="FILE", help="add results of --json"
    )
    top.add_argument("--timeout", type=float, default=3000, help="seconds in the nested host (%(default)g)")
    return top


def chosen(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names with `all` spelled out. Raises SystemExit for one that is not known."""
    unknown = [name for name in names if name not in known and name != "all"]
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}")
    return list(known) if "all" in names else list(names)


def write(args: argparse.Namespace, groups: Sequence[Group]) -> None:
    """The files that were asked for. Results of two places go into one file, under the last of them."""
    results = [result for group, _ in groups for result in group]
    where = groups[-1][1]
    if args.json:
        args.json.write_text(report.as_json(results, where))
    if args.markdown:
        args.markdown.write_text(report.markdown(results))
    if args.svg:
        args.svg.write_text(report.plot(results, place.title(where)))
    if args.curves:
        args.curves.write_text(curves.plot(results, place.title(where)))


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    args = parser().parse_args(arguments)
    found = modules()
    names = chosen(args.names, list(found))
    groups = [load(file) for file in args.files]
    if not names and not groups:
        for name, module in found.items():
            print(f"{name:16} {(module.__doc__ or '').splitlines()[0]}")
        return 0
    options = Options(
        args.rounds or (1 if args.quick else ROUNDS), args.quick, args.release, tuple(args.only), args.profile
    )
    inside, foreign = "AIOVMM_KVMHOST" in os.environ, args.arch != architecture.host().name
    there = [name for name in names if not inside and (args.nested or foreign or is_nested(found[name]))]
    here = [name for name in names if name not in there]
    if here:
        groups.append(run_here(here, options))
    if there:
        groups.append(run_nested(there, options, args.timeout, args.arch))
    write(args, groups)
    failed = [name for _, where in groups for name in where.get("failed", ())]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
