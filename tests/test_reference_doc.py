"""docs/reference.md, the table it is made from, and the parsers say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiovmm.cli.run import command
from aiovmm.config import options
from aiovmm.config.options import KEYS
from aiovmm.config.reference import Row, Verdict, as_markdown, rows
from aiovmm.errors import ConfigError

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
MODES = ("off", "null", "tty", "pty")

REFERENCE = """
cpus: boot max topology kvm_hyperv max_phys_bits affinity features nested core_scheduling profile
memory: size file mergeable hotplug_method hotplug_size hotplugged_size shared hugepages hugepage_size prefault reserve thp
memory-zone: id size file shared hugepages hugepage_size host_numa_node hotplug_size hotplugged_size prefault reserve mergeable
numa: guest_numa_id cpus distances device_id memory_zones pci_segments
pci-segment: pci_segment mmio32_aperture_weight mmio64_aperture_weight
platform: num_pci_segments iommu_segments iommu_address_width serial_number uuid oem_strings iommufd iommufd_fd vfio_p2p_dma
platform: system_manufacturer system_product_name system_version system_serial_number system_uuid system_sku_number system_family
platform: chassis_asset_tag tdx sev_snp
disk: path readonly direct queue_size num_queues serial vhost_user socket bw_size bw_one_time_burst bw_refill_time ops_size
disk: ops_one_time_burst ops_refill_time _disable_io_uring _disable_aio rate_limit_group queue_affinity backing_files sparse
disk: image_type lock_granularity id pci_segment pci_device_id iommu
net: tap ip mask mac host_mac offload_tso offload_ufo offload_csum mtu queue_size num_queues vhost_user socket vhost_mode fd
net: bw_size bw_one_time_burst bw_refill_time ops_size ops_one_time_burst ops_refill_time id pci_segment pci_device_id iommu
rng: src id pci_segment pci_device_id iommu
fs: tag queue_size num_queues socket id pci_segment pci_device_id
pmem: file size discard_writes id pci_segment pci_device_id iommu
device: path fd x_nv_gpudirect_clique x_exclude_mmap_bars id pci_segment pci_device_id iommu
balloon: size deflate_on_oom free_page_reporting id pci_segment pci_device_id iommu
rate-limit-group: id bw_size bw_one_time_burst bw_refill_time ops_size ops_one_time_burst ops_refill_time
vsock: cid socket id pci_segment pci_device_id iommu
serial: off null pty tty file socket
console: off null pty tty file socket iommu id pci_segment pci_device_id
landlock-rules: path access
debug-console: off null pty tty file iobase
rtc: id pci_segment pci_device_id iommu
generic-vhost-user: device_type virtio_id socket queue_sizes id pci_segment pci_device_id
"""
"""Keys of cloud-hypervisor 53, from its own parsers; `console socket` is ours."""

OPTIONS = """
api-socket balloon cmdline console cpus dbus-object-path dbus-service-name dbus-system-bus debug-console device disk event-monitor
firmware fs fw-cfg-config gdb generic-vhost-user host-data igvm initramfs ivshmem kernel landlock landlock-rules
log-file log-format memory memory-zone net no-shutdown numa pci-segment platform pmem pvmemcontrol pvpanic rate-limit-group
restore rng rtc seccomp serial sgx-epc tpm user-device vdpa version vsock watchdog
"""


def their_keys() -> set[tuple[str, str]]:
    lines = (line.partition(":") for line in REFERENCE.strip().splitlines())
    return {(f"--{option}", key) for option, _, keys in lines for key in keys.split()}


def test_the_document_is_what_the_table_makes() -> None:
    text = DOCUMENT.read_text()
    made = text.partition("<!-- made by python -m aiovmm.config.reference -->\n")[2].partition("<!-- end -->")[0]
    assert made == as_markdown()


def test_every_key_of_the_reference_has_a_row_and_one_only() -> None:
    keyed = [(row.option, row.key) for row in rows()]
    assert len(set(keyed)) == len(keyed)
    assert their_keys() <= set(keyed)
    not_ours = {(r.option, r.key) for r in rows() if r.key and r.verdict is not Verdict.OURS}
    assert not_ours == their_keys() - {("--console", "socket")}
    known = {option for option, _ in keyed}
    assert {f"--{name}" for name in OPTIONS.split()} <= known


def test_what_the_table_has_as_taken_is_what_the_parsers_take() -> None:
    taken = {(r.option[2:], r.key) for r in rows() if r.key and r.verdict is not Verdict.REFUSED}
    parsers = {(option, key) for option, keys in KEYS.items() for key in keys}
    parsers |= {(option, mode) for option in ("serial", "console", "debug-console") for mode in MODES}
    assert taken == parsers
    whole = {r.option for r in rows() if not r.key and r.verdict is not Verdict.REFUSED}
    ours = {name for param in command.params for name in param.opts if name.startswith("-")} - {
        "-h",
        "--help",
        "--verbose",
    }
    assert whole | {f"--{option}" for option in KEYS} == ours


@pytest.mark.parametrize(
    "row", [r for r in rows() if r.key and r.verdict is Verdict.REFUSED], ids=lambda r: f"{r.option} {r.key}"
)
def test_what_is_refused_is_refused_by_name_and_with_the_reason(row: Row) -> None:
    option = row.option[2:]
    with pytest.raises(ConfigError) as caught:
        getattr(options, f"parse_{option.replace('-', '_')}")(f"{row.key}=on")
    assert caught.value.option == f"{option}.{row.key}"
    assert row.note
    assert row.note in str(caught.value)


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        (r.option[2:], r.key, value)
        for r in rows()
        if r.key
        for value in ("", '""', *r.same)
        if r.verdict is Verdict.REFUSED
    ],
)
def test_what_asks_for_what_is_here_anyway_is_taken(option: str, key: str, value: str) -> None:
    """Launchers write every key with its default."""
    parse = getattr(options, f"parse_{option.replace('-', '_')}")
    need = {"disk": "path=/d", "device": "path=/d", "memory-zone": "id=z", "numa": "guest_numa_id=0"}.get(option, "")
    assert parse(f"{need},{key}={value}".lstrip(",")) == parse(need)


def test_only_what_is_refused_has_values_that_are_taken() -> None:
    assert not [row for row in rows() if row.same and row.verdict is not Verdict.REFUSED]
    assert ("--platform", "tdx", ("off", "false")) in [(r.option, r.key, r.same) for r in rows()]


def test_a_difference_is_said() -> None:
    assert not [
        row for row in rows() if row.verdict in (Verdict.DIFFERS, Verdict.REFUSED, Verdict.OURS) and not row.note
    ]
