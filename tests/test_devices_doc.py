"""docs/devices.md and `aiovmm devices` say what the code does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from aiovmm import architecture
from aiovmm.architecture import Architecture
from aiovmm.cli import cli
from aiovmm.cli.run import command as run_command
from aiovmm.config import (
    BalloonConfig,
    DeviceConfig,
    DiskConfig,
    FsConfig,
    NetConfig,
    PmemConfig,
    RngConfig,
    VsockConfig,
)
from aiovmm.device_model import DeviceRow, all_rows, as_markdown, device_rows
from aiovmm.device_model import rows as rows_of
from aiovmm.device_model.features import names_of, ring_features
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.protocol import Feature
from aiovmm.devices.virtio.net import NetDevice, TapBackend
from aiovmm.devices.virtio.net import features as net_bits
from aiovmm.errors import HostError
from aiovmm.virtqueue import features as ring_bits

DOC = Path(__file__).resolve().parent.parent / "docs/devices.md"

REFERENCE = (
    "Serial port",
    "RTC/CMOS",
    "I/O APIC",
    "i8042 shutdown/reboot",
    "PL061",
    "Debug console",
    "ACPI shutdown/reboot",
    "virtio-balloon",
    "virtio-blk",
    "virtio-console",
    "virtio-iommu",
    "virtio-mem",
    "virtio-net",
    "virtio-pmem",
    "virtio-rng",
    "virtio-vsock",
    "vhost-user-blk",
    "vhost-user-fs",
    "vhost-user-net",
    "VFIO",
    "vhost-user-generic",
    "virtio-rtc",
    "virtio-watchdog",
    "pvpanic",
)
"""The rows of the reference document's summary, and those of its devices that are missing there."""

CONFIGS = {
    "--balloon": BalloonConfig,
    "--disk": DiskConfig,
    "--net": NetConfig,
    "--pmem": PmemConfig,
    "--rng": RngConfig,
    "--vsock": VsockConfig,
    "--fs": FsConfig,
    "--device": DeviceConfig,
}

ROWS = {row.name: row for row in device_rows(architecture.X86_64)}
FOREIGN = {
    "x86-64": {"PL061"},
    "arm64": {"Debug console", "I/O APIC", "i8042 shutdown/reboot", "ACPI shutdown/reboot"},
}
"""What the reference document says is another architecture's."""


@pytest.mark.parametrize("of", architecture.ALL, ids=lambda a: a.title)
def test_every_row_of_the_reference_document_is_there_and_built_in(of: Architecture) -> None:
    rows = device_rows(of)
    assert tuple(row.name for row in rows) == REFERENCE
    assert {row.name for row in rows if not row.exists} == FOREIGN[of.title]
    assert {row.state for row in rows if row.exists} == {"built in"}
    assert {row.architecture for row in rows} == {of.title}


def test_the_document_has_the_tables_that_the_code_makes() -> None:
    text = DOC.read_text()
    tables = text.split("<!-- made by aiovmm devices --markdown -->\n")[1].split("<!-- end -->")[0]
    assert tables == as_markdown(all_rows()), "`aiovmm devices --markdown` prints what belongs there"
    assert CliRunner().invoke(cli, ["devices", "--markdown"]).output == tables


def test_a_device_that_is_the_same_everywhere_has_one_section() -> None:
    text = DOC.read_text()
    assert text.count("### virtio-blk\n") == 1
    assert all(text.count(f"### Serial port on {of.title}\n") == 1 for of in architecture.ALL)


def test_the_addresses_are_those_of_the_device_tree() -> None:
    limits = {row.name: row.limits for row in device_rows(architecture.AARCH64)}
    for name, base, intid in (
        ("Serial port", "0x09000000", 35),
        ("RTC/CMOS", "0x09010000", 32),
        ("PL061", "0x09020000", 33),
    ):
        assert f"at {base}, interrupt {intid}" in limits[name]


def test_the_document_names_the_ring_features() -> None:
    for name in ring_features():
        assert name in DOC.read_text()
    assert set(ring_features()) == {"VERSION_1", "EVENT_IDX", "INDIRECT_DESC"}


@pytest.mark.parametrize("of", architecture.ALL, ids=lambda a: a.title)
def test_the_command_prints_the_rows_of_the_hosts_architecture(
    of: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_of, "architecture", SimpleNamespace(host=lambda: of))
    result = CliRunner().invoke(cli, ["devices"])
    assert result.exit_code == 0
    rows = device_rows(of)
    printed = re.findall(r"^(\S.*?)  +(\S.*?)  +", result.output, re.M)
    assert printed == [(row.name, row.state) for row in rows]


def test_the_command_prints_the_rows_of_all() -> None:
    result = CliRunner().invoke(cli, ["devices", "--all"])
    assert result.exit_code == 0
    assert re.findall(r"^On (.*):$", result.output, re.M) == [of.title for of in architecture.ALL]
    assert result.output.count("\nvirtio-blk ") == len(architecture.ALL)


@pytest.mark.parametrize("every", [True, False])
def test_json_is_the_same_as_data(every: bool) -> None:
    result = CliRunner().invoke(cli, ["devices", "--json", *(["--all"] if every else [])])
    rows = json.loads(result.output)
    assert rows == [row.as_dict() for row in (all_rows() if every else device_rows())]
    assert {row["state"] for row in rows} <= {"built in", "not in this version", "not on x86-64", "not on arm64"}


def test_a_host_of_another_architecture_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "name_of_host", lambda: "riscv64")
    result = CliRunner().invoke(cli, ["devices"])
    assert isinstance(result.exception, HostError)


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.switch.startswith("--")], ids=lambda r: r.name)
def test_a_switch_is_an_option_and_its_keys_are_known(row: DeviceRow) -> None:
    option, _, keys = row.switch.partition(" ")
    assert option in {name for param in run_command.params for name in param.opts}
    if (config := CONFIGS.get(option)) is not None:
        named = {part.partition("=")[0] for part in keys.split(",")}
        assert named <= {field.name for field in fields(config)}


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("queues", [1, 2])
def test_a_disk_offers_nothing_that_the_table_does_not_have(tmp_path: Path, readonly: bool, queues: int) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    device = BlkDevice(DiskImage.open(image, readonly=readonly), num_queues=queues)
    names = {bit.name for bit in Feature if bit & device.features}
    assert names <= set(ROWS["virtio-blk"].features)
    assert ("RO" in names) == readonly
    assert ("MQ" in names) == (queues > 1)


def test_a_network_card_offers_nothing_that_the_table_does_not_have() -> None:
    device = NetDevice(TapBackend("t", pairs=2))
    names = set(names_of(device.features, net_bits))
    assert names
    assert names <= set(ROWS["virtio-net"].features)


def test_a_bit_without_a_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="0x2"):
        names_of(1 << 1, ring_bits)
