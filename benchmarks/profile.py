"""Where the time of a measurement went, by the kernel's own counters: of a monitor's threads, and of KVM about its guest.

Reading them before and after costs the measured nothing, unlike a trace. KVM's are in debugfs, and left out without root.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

__all__ = ["Counters", "Profile", "Source", "counters"]

Counters = dict[str, float]
Source = Callable[[], Counters]
_KVM = Path("/sys/kernel/debug/kvm")
_THREADS = ": threads"
_LEAST = 0.5  # what happens less often in a second is left out


def counters(pid: int) -> Counters:
    """All counters of the monitor with this process id. What ends with a thread is lost."""
    return {**_host(), **_threads(pid), **_guest(pid)}


def _host() -> Counters:
    """Processor time of the whole host in ms, by kind (proc(5): /proc/stat, in hundredths of a second)."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return {f"host: {name} ms": 10.0 * int(value) for name, value in zip(names, fields, strict=False)}


def _threads(pid: int) -> Counters:
    """Time on a processor, time waiting for one, sleeps, and times it was pushed off, of threads by name without numbers."""
    total: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = re.sub(r"[\d:-]+(?=$|/)", "", (task / "comm").read_text().strip()) or "?"
            ran, waited, _ = (int(word) for word in (task / "schedstat").read_text().split())
            status = (task / "status").read_text()
            user, system = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
        except (FileNotFoundError, ProcessLookupError):
            continue
        total[name + _THREADS] += 1
        total[f"{name}: on a processor, ms"] += round(ran / 1e6)
        total[f"{name}: waiting for one, ms"] += round(waited / 1e6)
        total[f"{name}: user, ms"] += int(user) * 10
        total[f"{name}: system, ms"] += int(system) * 10
        for kind, what in (("voluntary", "sleeps"), ("nonvoluntary", "pushed off")):
            found = re.search(rf"^{kind}_ctxt_switches:\s*(\d+)", status, re.MULTILINE)
            total[f"{name}: {what}"] += int(found[1]) if found else 0
    return dict(total)


def _guest(pid: int) -> Counters:
    """KVM's counters of all VMs of the process."""
    if os.geteuid() == 0 and not _KVM.exists():
        subprocess.run(["mount", "-t", "debugfs", "none", "/sys/kernel/debug"], check=False, capture_output=True)
    total: Counter[str] = Counter()
    for folder in _KVM.glob(f"{pid}-*"):  # none, where it may not be looked into
        for file in folder.iterdir():
            if file.is_file() and re.fullmatch(r"\d+\n", text := file.read_text()):
                total[f"kvm: {file.name}"] += int(text)
    return dict(total)


class Profile:
    """What counters of contestants rose by, a second of each of their measurements."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[Counters]] = {}

    def around(
        self, name: str, pid: int, measure: Callable[[], float], more: Source | None = None
    ) -> Callable[[], float]:
        """`measure` with the counters of a process, and `more`, read before and after it."""

        def read() -> Counters:
            return counters(pid) | (more() if more else {})

        def measured() -> float:
            before, began = read(), time.monotonic()
            value = measure()
            took, after = time.monotonic() - began, read()
            self.rounds.setdefault(name, []).append(_rise(before, after, took))
            return value

        return measured

    def table(self) -> str:
        """Medians of the rounds, a line a counter, a column a contestant."""
        names = list(self.rounds)
        medians = {name: _medians(rounds) for name, rounds in self.rounds.items()}
        keys = sorted({key for columns in medians.values() for key, value in columns.items() if abs(value) >= _LEAST})
        lines = [" " * 44 + "".join(f"{name:>14}" for name in names)]
        for key in keys:
            lines.append(f"  {key:42}" + "".join(f"{medians[name].get(key, 0.0):14,.0f}" for name in names))
        return "\n".join(lines)


def _rise(before: Counters, after: Counters, seconds: float) -> Counters:
    """What each rose by a second, but how many threads there are: that is no counter. What fell has ended."""
    rates = {key: max(value - before.get(key, 0.0), 0.0) / seconds for key, value in after.items()}
    return rates | {key: value for key, value in after.items() if key.endswith(_THREADS)}


def _medians(rounds: list[Counters]) -> Counters:
    keys = {key for one in rounds for key in one}
    return {key: median(one.get(key, 0.0) for one in rounds) for key in keys}
