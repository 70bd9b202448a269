"""A command line that is read without click means what it means to click."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiovmm.cli.run import OF_ROOTFS, command
from aiovmm.cli.run_options import OPTIONS, RunOption, read_plain
from aiovmm.errors import AiovmmError, ConfigError

NAMES = [option.name for option in OPTIONS]
TEXTS = [
    "",
    "-",
    "-1",
    "1",
    "1.5",
    "nan",
    "restart",
    "exit",
    "off",
    "path=a",
    "a=b=c",
    "--",
    "/etc/hostname",
    "/",
    "ü",
    "x y",
]
WORDS = [
    *NAMES,
    *TEXTS,
    "-v",
    "-vv",
    "--verbose",
    "-h",
    "--help",
    "-V",
    "--version",
    "--gdb",
    "--kernels",
    "surplus",
]
words = st.sampled_from(WORDS) | st.builds("{}={}".format, st.sampled_from(NAMES), st.sampled_from(TEXTS))
pairs = st.tuples(st.sampled_from(NAMES), st.sampled_from(TEXTS))
lines = st.lists(words.map(lambda word: (word,)) | pairs, max_size=6).map(lambda parts: [w for p in parts for w in p])


_WITHOUT_ROOTFS = {
    **dict.fromkeys(OF_ROOTFS),
    **dict.fromkeys(("volumes", "publish", "allow", "env", "words"), ()),
    **dict.fromkeys(("network", "tty", "filtered"), False),
    "scratch": "2G",
}


def by_click(args: list[str]) -> dict[str, Any] | None:
    """None where click has something to say."""
    try:
        with command.make_context("run", list(args)) as context:
            given = dict(context.params)
            without = {name: given.pop(name) for name in OF_ROOTFS}
            return given if without == _WITHOUT_ROOTFS else None
    except (click.ClickException, click.exceptions.Exit, AiovmmError):
        return None


@settings(max_examples=2000, deadline=None)
@given(args=lines)
@example(args=["--disk", "a", "b", "--disk=c", "d", "--kernel", "k", "-v", "--verbose"])
@example(args=["--kernel", "k", "--json=events", "--stop-timeout", "3"])
@example(args=["--kernel", "/proc/1/mem", "--on-reboot", "exit"])
def test_what_is_read_here_is_what_click_reads(args: list[str]) -> None:
    plain = read_plain(args)
    if plain is not None:
        theirs = by_click(args)
        assert repr(plain) == repr({key: (theirs or {}).get(key) for key in plain})
        assert theirs is not None
        assert theirs.keys() == plain.keys()


@pytest.mark.parametrize(
    "args",
    [
        ["--kernel", "k"],
        ["--kernel", "k", "--initramfs", "i", "--memory", "256M", "--serial", "tty", "--cpus=2"],
        ["--disk", "path=a", "path=b", "--cmdline", "console=ttyS0 quiet", "-v"],
        ["--kernel", "k", "--on-panic=restart", "--stop-timeout", "2.5", "--name", "vm1"],
    ],
)
def test_an_ordinary_command_line_needs_no_click(args: list[str]) -> None:
    assert read_plain(args) == by_click(args)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--kernel"],
        ["--kernel", "a", "--kernel", "b"],
        ["--name", ""],
        ["--name", "--kernel"],
        ["--on-reboot", "maybe"],
        ["--stop-timeout", "soon"],
        ["surplus"],
        ["--seccomp", "maybe"],
        ["--landlock=on"],
        ["--kernel", "a\0b"],
    ],
)
def test_whatever_may_need_a_word_is_left_to_click(args: list[str]) -> None:
    assert read_plain(args) is None


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.wants_value], ids=lambda option: option.name)
def test_an_option_without_its_value_does_not_take_the_next_one_for_it(option: RunOption) -> None:
    for following in ("--watchdog", "--disk", "--disk=path=a", "--landlock"):
        with pytest.raises(ConfigError, match=rf"^{option.name}: has no value \({following} after it is an option"):
            command.make_context("run", ["--kernel", "k", option.name, following, "path=b"])


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.alone is not None], ids=lambda o: o.name)
def test_an_option_that_may_stand_alone_leaves_the_next_one_alone(option: RunOption) -> None:
    for args in ([option.name], [option.name, "--landlock"], ["--landlock", option.name]):
        plain = read_plain(args)
        assert plain is not None
        assert plain == by_click(args)
        assert plain[option.key] == option.alone


def test_a_file_that_may_not_be_read_is_left_to_click(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "kernel"
    closed.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    assert read_plain(["--kernel", str(closed)]) is None


def test_every_option_has_a_row() -> None:
    assert {p.name for p in command.params} - {"verbose", "version", *OF_ROOTFS} == {option.key for option in OPTIONS}
