"""docs/devices.md and `aiovmm devices` say what the code does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiovmm.cli import cli
from aiovmm.cli.run import command as run_command
from aiovmm.config import DeviceConfig, DiskConfig, FsConfig, NetConfig, PmemConfig, RngConfig, VsockConfig
from aiovmm.device_model import DeviceRow, as_markdown, device_rows
from aiovmm.device_model.features import names_of, ring_features
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.protocol import Feature
from aiovmm.devices.virtio.net import NetDevice, TapBackend
from aiovmm.devices.virtio.net import features as net_bits
from aiovmm.virtqueue import features as ring_bits

DOC = Path(__file__).resolve().parent.parent / "docs/devices.md"

REFERENCE = (
    "Serial port",
    "RTC/CMOS",
    "I/O APIC",
    "i8042 shutdown/reboot",
    "ACPI shutdown/reboot",
    "virtio-blk",
    "virtio-console",
    "virtio-iommu",
    "virtio-net",
    "virtio-pmem",
    "virtio-rng",
    "virtio-vsock",
    "vhost-user-blk",
    "vhost-user-fs",
    "vhost-user-net",
    "VFIO",
)
"""The rows of the reference document's summary."""

CONFIGS = {
    "--disk": DiskConfig,
    "--net": NetConfig,
    "--pmem": PmemConfig,
    "--rng": RngConfig,
    "--vsock": VsockConfig,
    "--fs": FsConfig,
    "--device": DeviceConfig,
}

ROWS = {row.name: row for row in device_rows()}


def test_every_row_of_the_reference_document_is_there() -> None:
    assert tuple(ROWS) == REFERENCE


def test_the_document_has_the_tables_that_the_code_makes() -> None:
    text = DOC.read_text()
    tables = text.split("<!-- made by aiovmm devices --markdown -->\n")[1].split("<!-- end -->")[0]
    assert tables == as_markdown(list(ROWS.values())), "`aiovmm devices --markdown` prints what belongs there"


def test_the_document_names_the_ring_features() -> None:
    for name in ring_features():
        assert name in DOC.read_text()
    assert set(ring_features()) == {"VERSION_1", "EVENT_IDX", "INDIRECT_DESC"}


def test_the_command_prints_every_row() -> None:
    result = CliRunner().invoke(cli, ["devices"])
    assert result.exit_code == 0
    for row in ROWS.values():
        assert re.search(rf"^{re.escape(row.name)} +{row.state} ", result.output, re.M), row.name


def test_json_is_the_same_as_data() -> None:
    result = CliRunner().invoke(cli, ["devices", "--json"])
    rows = json.loads(result.output)
    assert rows == [row.as_dict() for row in ROWS.values()]
    assert {row["state"] for row in rows} <= {"built in", "not in this version"}


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
