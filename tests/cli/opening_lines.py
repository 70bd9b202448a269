"""Command lines of `aiovmm run` for `opening`: each option and key with each hostile value that its kind of value has, beside
what else must be given for it to be used. `image`, `fifo` and so on are what `opening.furnish` makes. Relative paths throughout:
what a line makes is made in its own directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aiovmm.config import text
from aiovmm.config.options import KEYS
from tests.cli.opening import ABSENT_FD

__all__ = ["line", "lines_of_keys", "lines_of_words"]

FILES = [
    *(
        "missing",
        "missing/below",
        "directory",
        "fifo",
        "dead",
        "loop",
        "dangling",
        "empty",
        "text",
        "text/below",
        "huge",
    ),
    *("/dev/null", "/dev/full", "/dev/zero", "/dev/tty", "/dev/ptmx", "/dev/kvm", "/dev/net/tun", "/dev/stdin"),
    *(
        "/proc/version",
        "/proc/self/mem",
        f"/dev/fd/{ABSENT_FD}",
        "/sys/bus/pci/devices",
        "/sys/bus/pci/devices/0000:99:99.9",
    ),
    *("", "image", "-", ".", "\udcff\udcfe", "\u00e9", "a\nb", "\x1b[2J", "%s%n", '"a,b"', "[x]", " "),
    *("x" * 107, "x" * 108, "x" * 256, "directory/" + "y/" * 2100, "x" * 70000),
]
NUMBERS = [
    *("", "0", "-1", "1", "2", "31", "255", "256", "65535", "65536", "2147483647", "2147483648", "4294967295"),
    *("4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("9" * 30, "9" * 5000, "0x", "010", "1e9", "nan", "\u0663", "\udcff", str(ABSENT_FD)),
]
SIZES = [*NUMBERS, "1K", "513", "2M", "4M", "3.5M", "5000T", "16E", "K"]
WORDS = [
    *(
        "",
        "\udcff\udcfe",
        "\u00e9",
        "\u0130",
        "a\nb",
        "\x1b[2J",
        "\x7f",
        "\t",
        "/",
        ".",
        "..",
        "a/b",
        "x%d",
        "%s%n",
        "-",
    ),
    *("x" * 15, "x" * 16, "x" * 20, "x" * 21, "x" * 36, "x" * 37, "x" * 300, "x" * 70000),
    *("lo", "10.0.0.1", "0.0.0.0", "255.255.255.255", "fd00::1", "fe80::1%lo", "ffff::", "33", "129", "-1"),
    *("01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "2e:00:00:00:00:\udcff"),
    "00000000-0000-0000-0000-000000000000",
]
LISTS = [
    *(
        "",
        "[]",
        "[",
        "]",
        "[[0]]",
        "[0]",
        "[-1]",
        "[3-1]",
        "[0-99999999999]",
        "[0-4294967295]",
        "[0,,0]",
        "[0,0]",
        "[99]",
    ),
    *("[18446744073709551616]", "[0@[0]]", "[0@]", "[@]", "[0@[9999999]]", "[0@[0-4294967295]]", "[9@[0]]", "[0@0]"),
    *("[\udcff,a]", "[" + ",".join(["a" * 50] * 2000) + "]", "[amx,sse]", f"[{ABSENT_FD}]", "[10.0.0.1,fd00::1]"),
]
BOOLS = ["", "on", "off", "yes", "\udcff"]
OTHERS = [
    *BOOLS,
    "0",
    "-1",
    "1:1:1:0",
    "0:0:0:0",
    "9999999999:1:1:1",
    ":::",
    "raw",
    "qcow2",
    "vhd",
    "byte-range",
    "x" * 300,
]
OF_KIND: dict[object, list[str]] = {
    text.to_path: FILES,
    text.to_int: NUMBERS,
    text.to_size: SIZES,
    text.to_seconds: NUMBERS,
    text.to_text: WORDS,
    text.to_bool: BOOLS,
    text.to_ints: LISTS,
    text.to_words: LISTS,
    text.to_pairs: LISTS,
}
BESIDE = {
    "memory": "size=4M",
    "memory-zone": "id=z,size=4M",
    "numa": "guest_numa_id=0",
    "console": "null",
    "disk": "path=image",
    "net": "tap=,ip=10.9.8.7,mask=24",
    "fs": "tag=t,socket=dead",
    "pmem": "file=image",
    "vsock": "cid=3,socket=s",
    "balloon": "size=1M",
    "rate-limit-group": "id=g,bw_size=1M,bw_refill_time=10",
    "landlock-rules": "path=directory,access=rw",
    "generic-vhost-user": "device_type=block,socket=dead,queue_sizes=[64]",
    "debug-console": "null",
    "limits": "exits=1000",
}
"""What an option needs besides; a key that is tried takes the place of the same key here."""
INSTEAD = {
    ("disk", "socket"): "vhost_user=on",
    ("disk", "image_type"): "path=text",
    ("disk", "overlay"): "path=image,overlay=new",
    ("net", "fd"): "",
    ("net", "tap"): "",
    ("net", "socket"): "vhost_user=on",
    ("serial", "filter"): "file=out",
    ("console", "filter"): "file=out",
    ("console", "file"): "",
    ("console", "socket"): "",
    ("debug-console", "file"): "",
    ("debug-console", "socket"): "",
}
MORE = {"memory-zone": ["--memory", "size=0"], "landlock-rules": ["--landlock"]}
WHOLE = {
    "--kernel": FILES,
    "--initramfs": FILES,
    "--cmdline": [f"o {word}" for word in (*WORDS, "x " * 1000, "x" * 4000)],
    "--name": WORDS,
    "--log-file": FILES,
    "--log-format": [*WORDS, "{", "{0}", "{level:9999999999}", "{msg.__class__}"],
    "--json": FILES,
    "--control-socket": FILES,
    "--event-monitor": [*(f"path={name}" for name in FILES), *(f"fd={number}" for number in NUMBERS if number != "2")],
    "--restore": [*FILES, *(f"source_url=file://{name}" for name in FILES)],
    "--rootfs": FILES,
    "--user": [*WORDS, "nobody", "0:-1", "4294967295", "18446744073709551616:1"],
    "--host-user": [*WORDS, "nobody", "0:-1", "4294967295", "18446744073709551616:1"],
    "--stop-timeout": [*NUMBERS, "inf", "-inf", "1e400"],
    "--detach-keys": [*WORDS, "ctrl-p", "ctrl-\u00e9"],
    "--on-reboot": OTHERS,
    "--on-panic": OTHERS,
    "--seccomp": OTHERS,
    "--tpm": ["socket=dead"],
    "--api-socket": FILES,
}
"""Options whose value has no keys."""


def line(*options: str) -> list[str]:
    """`aiovmm run` of a guest that powers off at once; `options` come in the place of those here."""
    usual = {"--memory": "4M", "--cmdline": "o", "--serial": "null", "--kernel": "@kernel"}
    return ["run", *(word for name, value in usual.items() if name not in options for word in (name, value)), *options]


def _with(option: str, key: str, value: str) -> list[str]:
    beside = INSTEAD.get((option, key), BESIDE.get(option, ""))
    kept = [part for part in beside.split(",") if part and not part.startswith(f"{key}=")]
    return line(*MORE.get(option, []), f"--{option}", ",".join([*kept, f"{key}={value}"]))


def lines_of_keys() -> Iterator[tuple[str, Sequence[list[str]]]]:
    """Of each key its lines."""
    for option, keys in KEYS.items():
        for key, kind in keys.items():
            yield f"{option}.{key}", [_with(option, key, value) for value in OF_KIND.get(kind, OTHERS)]


def lines_of_words() -> Iterator[tuple[str, Sequence[list[str]]]]:
    """The same of options without keys."""
    for option, values in WHOLE.items():
        yield option, [line(option, value) for value in values]
