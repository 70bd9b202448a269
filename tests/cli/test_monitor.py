"""`--event-monitor`, `--log-file`, `--log-format` and `--no-shutdown`: what a launcher of the reference looks at."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.cli.event_monitor import EventMonitor, open_monitor
from aiovmm.cli.log_format import DEFAULT, TemplateFormatter
from aiovmm.errors import ConfigError
from aiovmm.events import EventStream
from aiovmm.lifecycle import Event, EventKind, ExitReason, ExitStatus
from tests.cli.conftest import Command
from tests.cli.test_run import DEADLINE, read_until, wait_for
from tests.vm.guest import config


def objects(text: str) -> list[dict[str, Any]]:
    """Each followed by an empty line."""
    assert text.endswith("}\n\n")
    return [json.loads(part) for part in text.split("\n\n") if part]


def names(text: str) -> list[str]:
    return [f"{row['source']} {row['event']}" for row in objects(text)]


def test_the_life_of_a_guest_in_the_references_words_and_order(
    aiovmm: Command, guest: list[str], tmp_path: Path
) -> None:
    done = aiovmm.run(*guest, "--cmdline", "ho", "--event-monitor", f"path={tmp_path}/ev", "--console", "off")
    assert done.returncode == 0
    rows = objects((tmp_path / "ev").read_text())
    assert [f"{row['source']} {row['event']}" for row in rows] == [
        "vmm starting",
        "vm booting",
        "vm booted",
        "aiovmm stopped",
        "vm shutdown",
        "vm deleted",
        "vmm shutdown",
    ]
    assert all(list(row) == ["timestamp", "source", "event", "properties"] for row in rows)
    assert rows[0]["properties"] is None
    assert rows[3]["properties"] == {"reason": "shutdown", "detail": "powered off by ACPI"}
    times = [(row["timestamp"]["secs"], row["timestamp"]["nanos"]) for row in rows]
    assert times == sorted(times)
    assert all(nanos < 1_000_000_000 for _, nanos in times)


def test_a_descriptor_and_a_reboot(aiovmm: Command, guest: list[str]) -> None:
    reading, writing = os.pipe()
    process = aiovmm.start(*guest, "--cmdline", "her", f"--event-monitor=fd={writing}", pass_fds=[writing])
    os.close(writing)
    assert process.stdin is not None
    with os.fdopen(reading, "rb") as stream:
        for _ in range(2):
            read_until(process.stdout, b"hello\n")
            process.stdin.write(b"q")
            process.stdin.flush()
        read_until(process.stdout, b"hello\n")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        told = names(stream.read().decode())
    process.communicate(timeout=DEADLINE)
    assert told[:7] == ["vmm starting", "vm booting", "vm booted"] + ["vm rebooting", "vm rebooted"] * 2
    assert told[-3:] == ["vm shutdown", "vm deleted", "vmm shutdown"]


@pytest.mark.parametrize("text", ["", "path=", "fd=", "file=x", "path", "path=a,fd=3", "fd=x", "fd=-1", "fd=77"])
def test_what_names_no_place_is_refused(text: str, aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "o", f"--event-monitor={text}")
    assert done.returncode == 2
    assert done.stderr.startswith(b"aiovmm: --event-monitor")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("option", ["--event-monitor=path={}", "--log-file={}"])
def test_a_file_of_the_guests_is_not_written(option: str, aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * 4096)
    done = aiovmm.run(*guest, "--cmdline", "o", "--disk", f"path={disk}", option.format(disk))
    assert done.returncode == 2
    assert b"is the guest's disk" in done.stderr
    assert disk.read_bytes() == b"x" * 4096


async def test_every_kind_of_event_has_a_name_and_texts(tmp_path: Path) -> None:
    status = ExitStatus(ExitReason.PANIC, "it panicked", OSError(5, "x"))
    stream: EventStream[Event] = EventStream()
    events = stream.subscribe()
    for kind in EventKind:
        stream.emit(Event(kind, "vm", 1.0, "detail", "disk0", status, status.error))
    stream.end()
    monitor = EventMonitor(open_monitor(f'path="{tmp_path}/ev"', config("o")))
    await monitor.follow(events)
    await monitor.finish()
    rows = objects((tmp_path / "ev").read_text())
    assert {row["source"] for row in rows} == {"vm", "guest", "virtio-device", "aiovmm"}
    by_name = {(row["source"], row["event"]): row["properties"] for row in rows}
    assert by_name["guest", "panic"] == {"event": "panic"}
    assert by_name["virtio-device", "activated"] == by_name["virtio-device", "reset"] == {"id": "disk0"}
    assert by_name["aiovmm", "device-error"]["device"] == "disk0"
    assert all(isinstance(v, str) for row in rows for v in (row["properties"] or {}).values())


# -- staying


def test_it_stays_when_the_guest_has_gone_until_a_signal(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    events = tmp_path / "ev"
    process = aiovmm.start(*guest, "--cmdline", "ho", "--no-shutdown", "--event-monitor", f"path={events}")
    wait_for(lambda: events.exists() and "vm shutdown" in names_so_far(events), process)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert out == b"hello\n"
    assert names(events.read_text())[-2:] == ["vm deleted", "vmm shutdown"]


def names_so_far(path: Path) -> list[str]:
    whole = path.read_text().rpartition("\n\n")[0]
    return names(f"{whole}\n\n") if whole else []


def test_it_does_not_stay_after_a_signal_or_a_failure(aiovmm: Command, guest: list[str]) -> None:
    process = aiovmm.start(*guest, "--cmdline", "hbo", "--no-shutdown")
    read_until(process.stdout, b"hello\n")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert aiovmm.run(*guest, "--cmdline", "t", "--no-shutdown", "--serial", "null").returncode == 1


# -- the log


def test_a_log_file_has_the_lines_and_stderr_has_not(aiovmm: Command, guest: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = aiovmm.run(*guest, "--cmdline", "o", "--log-file", str(log), "-vv", "--serial", "null", "--console", "null")
    assert b"started" not in done.stderr
    lines = log.read_text().splitlines()
    assert all(re.fullmatch(r"aiovmm: +\d+\.\d{6}s: <\w+> \w+:\S+\.py:\d+ -- .+", line) for line in lines)
    assert any(line.endswith("-- vm: started") for line in lines)


def test_a_template_on_stderr(aiovmm: Command, guest: list[str]) -> None:
    args = [*guest, "--cmdline", "o", "-vv", "--serial", "tty"]
    done = aiovmm.run(*args, "--log-format", "{levelchar}{{{pid}}} {msg}")
    assert re.search(rb"^D\{\d+\} vm: started$", done.stderr, re.M)


@pytest.mark.parametrize("text", ["{", "}", "{what}", "a{level", "{msg}}", "{}"])
def test_a_template_that_cannot_be_read_is_refused(text: str, aiovmm: Command, guest: list[str]) -> None:
    done = aiovmm.run(*guest, "--cmdline", "o", "--log-format", text)
    assert done.returncode == 2
    assert b"aiovmm: --log-format: " in done.stderr
    assert b"Traceback" not in done.stderr


def record(**values: Any) -> logging.LogRecord:
    made = logging.LogRecord("aiovmm", logging.WARNING, "/x/aiovmm/vm.py", 7, "it %s", ("is",), None)
    vars(made).update({"created": 1705315845.123456, "threadName": "main", **values})
    return made


def test_the_words_of_a_template() -> None:
    rendered = {
        "{wallclock}": "2024-01-15T10:50:45.123456Z",
        "{glog}": "0115 10:50:45.123456",
        "{level} {levelchar} {location} {msg} <{thread}>": "WARN W vm.py:7 it is <main>",
        "{year}-{month}-{day}T{hour}:{minute}:{second}.{micros}{offset}": "2024-01-15T10:50:45.123456+00:00",
        "{{{msg}}}": "{it is}",
        "": "",
    }
    assert {text: TemplateFormatter(text).format(record()) for text in rendered} == rendered


def test_local_time_is_the_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX-05:30")
    time.tzset()
    try:
        line = TemplateFormatter("{localhour}:{localminute} {localoffset} {localglog}").format(record())
    finally:
        monkeypatch.undo()
        time.tzset()
    assert line == "16:20 +05:30 0115 16:20:45.123456"


@given(st.text(alphabet="{}abc levelmsg"))
def test_any_text_is_a_template_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(TemplateFormatter(text).format(record()), str)


def test_a_traceback_comes_behind_its_line() -> None:
    try:
        raise ValueError("why")
    except ValueError as exc:
        info = (type(exc), exc, exc.__traceback__)
    lines = TemplateFormatter(DEFAULT).format(record(exc_info=info)).splitlines()
    assert lines[0].endswith("-- it is")
    assert lines[-1] == "ValueError: why"


def test_a_place_that_is_empty_is_none_and_two_are_refused(tmp_path: Path) -> None:
    os.close(open_monitor(f"path={tmp_path}/ev,fd=", config("s")))
    for text, said in (("path=,fd=", "names no place"), (f"path={tmp_path}/ev,fd=2", "names two places")):
        with pytest.raises(ConfigError, match=said):
            open_monitor(text, config("s"))
