"""Every option and key with every kind of value, by the real way of `aiovmm run`'s arguments up to devices that are made and not
opened yet: it is taken, or refused in one line with exit code 2. Never a traceback."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiovmm.cli import main
from aiovmm.cli.session import Session
from aiovmm.config import text
from aiovmm.config.options import KEYS
from aiovmm.config.reference import rows
from aiovmm.console import Console
from aiovmm.machine.devices import plug_configured
from aiovmm.machine.parts import MachineParts
from aiovmm.machine.x86_64.vcpus import topology_of
from aiovmm.vm import VM

HOSTILE = [
    *(
        "",
        "0",
        "-1",
        "+5",
        "010",
        "0x10",
        "0x",
        "1_000",
        " 5",
        "1e9",
        "1.5G",
        "nan",
        "inf",
        "\u00b2",
        "\u0663",
        "2M",
        "0K",
        "5000T",
    ),
    *(
        "9" * 30,
        "9" * 5000,
        "0x" + "f" * 17,
        "18446744073709551615",
        "4294967296",
        "2147483648",
        "254",
        "255",
        "96",
        "31",
        "32",
    ),
    *(
        "[",
        "]",
        "[]",
        "[[1]]",
        "[1-3]",
        "[3-1]",
        "[0-99999999999]",
        "[0-4294967295]",
        "[1,,2]",
        "[0@[0-1],1@[2]]",
        "[0@]",
        "[@]",
    ),
    *(
        '"',
        '""',
        '"""',
        '"a,b"',
        "a,b",
        "a=b",
        "=",
        "on",
        "off",
        "TRUE",
        "yes",
        "raw",
        "qcow2",
        "amx",
        "[amx,sse]",
        "byte-range",
    ),
    *(
        "2:2:1:1",
        "1:1:1:1",
        "0:0:0:0",
        ":::",
        "1:2:3",
        "tty",
        "pty",
        "null",
        "file=/f",
        "socket=/s",
        "tty,null",
        "off,iommu=on",
    ),
    *(
        "10.0.0.1",
        "24",
        "255.255.255.0",
        "0.0.0.255",
        "fd00::1",
        "fe80::1%lo",
        "ffff::",
        "2e:00:00:00:00:01",
        "01:00:5e:00:00:01",
    ),
    *(
        "\u00e9",
        "\udcff\udcfe",
        "\udcff" * 200,
        "\n",
        "a\nb",
        "\x1b[2J",
        "\x7f",
        "/",
        ".",
        "..",
        "a/b",
        "x%d",
        "x" * 15,
        "x" * 21,
    ),
    *(
        "x" * 37,
        "x" * 91,
        "x" * 108,
        "x" * 300,
        "/" + "x" * 5000,
        "x" * 70000,
        "/dev/null",
        "/tmp",
        "-",
        "--",
        "-V=1",
        "ctrl-p",
        "\u0130",
    ),
]
values = st.one_of(
    st.sampled_from(HOSTILE),
    st.binary(max_size=24).map(lambda data: data.replace(b"\0", b"").decode(errors="surrogateescape")),
    st.integers(-(1 << 65), 1 << 65).map(str),
    st.text(st.sampled_from('[]",=@-:019axKM. '), max_size=16),
)
NEEDED = {
    "disk": "path=/d",
    "fs": "tag=t,socket=/s",
    "pmem": "file=/p",
    "device": "path=/sys/x",
    "vsock": "cid=3",
    "console": "null",
}
KEYED = [(option, key) for option, keys in KEYS.items() for key in keys]
ABSENT = [(row.option[2:], row.key) for row in rows() if row.key and (row.option[2:], row.key) not in KEYED]
PLAIN = [row.option for row in rows() if not row.key and row.option.startswith("--") and row.option != "--version"]


PLAUSIBLE: dict[object, st.SearchStrategy[str]] = {
    text.to_int: st.sampled_from(["1", "2", "4", "02", "0x4", "128", "256", "1500", "64"]),
    text.to_bool: st.sampled_from(["on", "off", "true", "False"]),
    text.to_size: st.sampled_from(["2M", "16M", "0x200000", "1g"]),
    text.to_ints: st.sampled_from(["[0]", "0", "[3]", "[3-4]", "[]"]),
    text.to_text: st.sampled_from(
        ["x", "a:b", "\udcff", "\u00e9", '"a,b"', "10.0.0.1", "24", "fd00::1", "2E:00:00:00:00:01"]
    ),
    text.to_path: st.sampled_from(["/x", "\udcff", '"/a,b"', "[x]", "a\nb", "/" + "x" * 300]),
}
"""What a key may have, by what is made of it."""


def values_of(option: str, key: str) -> st.SearchStrategy[str]:
    """Hostile ones, and such as reach those who use them."""
    likely = PLAUSIBLE.get(KEYS.get(option, {}).get(key))
    return values if likely is None else st.integers(0, 4).flatmap(lambda n: values if n == 0 else likely)


@st.composite
def option_text(draw: st.DrawFn) -> list[str]:
    """`--option key=value,...`: with what else it needs, or without."""
    option, key = draw(st.one_of(*[st.sampled_from(KEYED)] * 5, st.sampled_from(ABSENT)))
    others = [k for o, k in KEYED if o == option and k != key]
    parts = [NEEDED[option]] if option in NEEDED and draw(st.integers(0, 5)) else []
    parts += [f"{key}={draw(values_of(option, key))}"]
    if others:
        more = draw(st.lists(st.sampled_from(others), max_size=2, unique=True))
        parts += [f"{k}={draw(values_of(option, k))}" for k in more]
    parts = [part for part in parts if not (part in NEEDED.values() and f"{key}=" in part)]
    return [f"--{option}", ",".join(draw(st.permutations(parts)))]


arguments = st.one_of(
    option_text(),
    option_text(),
    option_text(),
    st.tuples(st.sampled_from(sorted({f"--{option}" for option, _ in KEYED}) + PLAIN), values).map(list),
    st.tuples(st.sampled_from(PLAIN), values).map(lambda pair: ["=".join(pair)]),
    values.filter(lambda value: value not in ("-h", "-V")).map(lambda value: [value]),
)


async def make_and_close(self: Session) -> int:
    """Instead of running the guest: all that is made of a configuration before anything of the host is opened."""
    config = self._config
    VM(config, terminal=False)
    parts = MachineParts(config, cast(Any, None), Console(), Console(), lambda _: None, lambda _: None)
    try:
        plug_configured(parts)
        topology_of(config.cpus)
        config.cmdline.encode(errors="surrogateescape")
    finally:
        parts.passthrough = None
        await parts.aclose()
    return 0


def run(words: list[str]) -> tuple[object, str]:
    """Exit code, and what standard error has."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as err:
        patch.setattr(Session, "run", make_and_close)
        patch.setattr("aiovmm.cli.logs.configure_logging", lambda *_: None)
        patch.setattr("aiovmm.cli.fill_standard_descriptors", lambda: ())
        patch.setattr("aiovmm.cli.start.require_descriptors", lambda *_: None)
        patch.setattr(sys, "argv", ["aiovmm", "run", *words])
        with pytest.raises(SystemExit) as end, contextlib.redirect_stdout(io.StringIO()):
            main()
    return end.value.code, err.getvalue()


@settings(max_examples=1500, deadline=None)
@example(words=[["--cmdline", "\udcff"]])
@example(words=[["--memory", "size=010M"]])
@example(words=[["--net", "tap=,ip=fd00::1,mask=64"]])
@example(words=[["--net", "fd=1099511627776"]])
@example(words=[["--disk", "path=/d,serial=\udcff"], ["--fs", "tag=\udcff,socket=\udcff"]])
@given(words=st.one_of(st.lists(arguments, min_size=1, max_size=2), option_text().map(lambda words: [words])))
def test_it_is_taken_or_refused_in_one_line(words: list[list[str]]) -> None:
    code, said = run(["--kernel", "/kernel", *(word for group in words for word in group)])
    if code == 0:
        assert said == ""
    else:
        assert code == 2, said
        assert said.startswith("aiovmm: ")
        assert said.count("\n") == 1
        assert said[:-1].isprintable()


@pytest.mark.parametrize(
    "words",
    [
        ["--disk", "path=/d,serial=\udcff"],
        ["--fs", "tag=\udcff,socket=/\udcff"],
        ["--cmdline", "root=LABEL=\udcff"],
        ["--cpus", "boot=010"],
        ["--net", "tap=,mac=,ip=,mask="],
        ["--net", "ip=fd00::1,mask=ffff:ffff:ffff:ffff::"],
        ["--platform", "num_pci_segments=96,iommu_segments=[1-3,95]"],
        ["--console", 'file="a,b",iommu=on,id=con,pci_device_id=7', "--serial", "off"],
        ["--disk", "path=/a", "path=/b", "--disk=path=/c", "path=/d"],
        ["--seccomp", "false", "--cpus", "boot=2", "--debug-console=off", "--disk", "path=/a", "path=/b"],
        [
            "--memory",
            "size=512M,mergeable=off,hotplug_size=0",
            "--disk",
            "path=/a,bw_size=0,rate_limit_group=,backing_files=off",
        ],
    ],
    ids=lambda words: " ".join(words).encode("ascii", "backslashreplace").decode(),
)
def test_what_is_meant_to_be_taken(words: list[str]) -> None:
    assert run(["--kernel", "/kernel", *words]) == (0, "")
