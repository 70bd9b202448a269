"""Option texts: a value, or one line that says which option and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from aiovmm.config import options
from aiovmm.console.keys import parse_keys
from aiovmm.errors import ConfigError
from tests.fuzz.source import Source, refused

_PARSERS: list[Callable[[str], Any]] = [
    partial(parse, name) if name in ("serial", "console") else parse
    for name, parse in [
        *((name, options.parse_console) for name in ("serial", "console")),
        *(
            (name, getattr(options, name))
            for name in sorted(options.__all__)
            if name.startswith("parse_") and name != "parse_console"
        ),
        ("keys", parse_keys),
    ]
]
_TEXTS = [
    "tty,filter=on", "file=/a,id=x", "boot=4,max=8,topology=1:2:2:1,affinity=[0@[0-3],1@[2,4]]", "size=1G,shared=on",
    "path=/a,readonly=on,bw_size=1M,bw_refill_time=10", "tap=t,mac=2e:00:00:00:00:01,num_queues=4,mtu=1400",
    "cid=3,socket=/s", "num_pci_segments=2,serial_number=abc", "guest_numa_id=0,cpus=[0-3],distances=[1@20]",
    "id=z,size=64M,hotplug_size=1G,host_numa_node=0", "", "ctrl-a,ctrl-p",
]  # fmt: skip
SEEDS = [bytes([number]) + text.encode() for number in range(len(_PARSERS)) for text in _TEXTS[number % 3 :: 3]]


def run(data: bytes) -> None:
    source = Source(data)
    parse = source.one(_PARSERS)
    with refused(ConfigError):
        parse(source.rest().decode(errors="surrogateescape"))
