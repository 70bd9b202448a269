"""Network between guest and host over a TAP with offloads, against QEMU's virtio-net without vhost. Boots stock kernels.

Each monitor's guest has a TAP of its own in the benchmark's network namespace. Streams are TCP, and what counts is what the
receiver got; round trips are ICMP echoes from the host; small packets are UDP datagrams of 18 bytes, as many as arrive.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.guest import AIOVMM, QEMU, Files, Guest, both, compare
from benchmarks.harness import Options, Result, Target
from benchmarks.network import ip, own_network, serving
from benchmarks.profile import Counters, Source
from benchmarks.programs import program

NESTED = True
TCP, UDP = 7001, 7002
NETWORKS = {QEMU: "10.9.1", AIOVMM: "10.9.2"}

Measure = Callable[[Guest, str], float]


def run(options: Options) -> Iterator[Result]:
    """All rows."""
    with own_network(), tempfile.TemporaryDirectory() as name:
        files = Files(Path(name), options.release)
        ours = ["--net", f"tap=ours,ip={NETWORKS[AIOVMM]}.1,mask=255.255.255.0"]
        theirs = ["-netdev", "tap,id=n,ifname=theirs,script=no,downscript=no,vhost=off"]
        qemu, aiovmm = both(files, ours, [*theirs, "-device", "virtio-net-pci,netdev=n"])
        servers = f"tcp:0.0.0.0:{TCP}", f"udp:0.0.0.0:{UDP}"
        with qemu, aiovmm, serving(program("traffic"), *servers):
            ip(f"address add {NETWORKS[QEMU]}.1/24 dev theirs")
            ip("link set theirs up")
            for guest in (qemu, aiovmm):
                guest.run(f"ip address add {NETWORKS[guest.name]}.2/24 dev eth0; ip link set eth0 up")
                host_pings(NETWORKS[guest.name], 3)
            yield from rows((qemu, aiovmm), options)


def rows(guests: tuple[Guest, ...], options: Options) -> Iterator[Result]:
    """One row after the other, all guests in turn."""
    seconds = options.pick(3, 1)
    measures: dict[str, tuple[str, Target, Measure]] = {
        "TCP, guest to host": ("MiB/s", Target(1.0, most=False), traffic("send", "tcp", TCP, seconds)),
        "TCP, host to guest": ("MiB/s", Target(1.0, most=False), traffic("receive", "tcp", TCP, seconds)),
        "ping": ("us", Target(1.2), lambda guest, network: host_pings(network, options.pick(200, 20))),
        "small packets from the guest": ("1/s", Target(1.0, most=False), traffic("out", "udp", UDP, seconds)),
        "small packets to the guest": ("1/s", Target(1.0, most=False), traffic("in", "udp", UDP, seconds)),
    }
    for name, (unit, target, measure) in measures.items():
        if options.wants(name):
            row = Result(name, unit, AIOVMM, (QEMU,), target)
            yield compare(row, guests, lambda g, m=measure: m(g, NETWORKS[g.name]), options, PACKETS)  # type: ignore[misc]


def packets(interface: str) -> Counters:
    """What the host got out of a TAP and sent into it, as this thread's namespace sees it (proc(5): /proc/net/dev)."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, rest = line.strip().partition(":")
        if name == interface:
            fields = rest.split()
            return {"TAP: from the guest": float(fields[1]), "TAP: to it": float(fields[9])}
    return {}


PACKETS: dict[str, Source] = {QEMU: lambda: packets("theirs"), AIOVMM: lambda: packets("ours")}


def traffic(what: str, kind: str, port: int, seconds: float) -> Measure:
    """A client in the guest."""
    return lambda guest, network: guest.result(f"traffic {what} {kind}:{network}.1:{port} {seconds}")


def host_pings(network: str, count: int) -> float:
    """Microseconds of `count` round trips, median."""
    command = ["ping", "-n", "-c", str(count), "-i", "0.005", "-W", "5", f"{network}.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return 1e3 * statistics.median(float(ms) for ms in re.findall(r" time=(\S+) ms", done.stdout))
