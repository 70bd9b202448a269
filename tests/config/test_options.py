"""Option text: the reference monitor's syntax and meaning, and refusals that name the option."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiovmm.config import ConsoleMode, CpusConfig, DiskConfig, RngConfig, TopologyConfig, VMConfig
from aiovmm.config import PayloadConfig as Payload
from aiovmm.config.options import (
    parse_balloon,
    parse_console,
    parse_cpus,
    parse_device,
    parse_disk,
    parse_fs,
    parse_landlock_rule,
    parse_memory,
    parse_memory_zone,
    parse_net,
    parse_numa,
    parse_platform,
    parse_pmem,
    parse_rng,
    parse_vsock,
)
from aiovmm.config.remarks import remarks
from aiovmm.config.text import to_ints, to_pairs, to_size
from aiovmm.config.zones import settled
from aiovmm.errors import ConfigError

NOT_WITH_VHOST_USER = ("tap=tap0", "fd=3", "ip=10.0.0.1,mask=24", "host_mac=2e:00:00:00:00:01", "passt=on")


def test_cpus_by_number_and_by_keys() -> None:
    assert parse_cpus("2").boot == 2
    both = parse_cpus("boot=2,max=4")
    assert (both.boot, both.max) == (2, 4)


def test_what_the_guest_sees_of_its_processors() -> None:
    cpus = parse_cpus("boot=2,max=8,topology=2:2:1:2,max_phys_bits=40,nested=off,features=amx")
    assert cpus.topology == TopologyConfig(threads=2, cores=2, dies=1, packages=2)
    assert (cpus.max_phys_bits, cpus.nested, cpus.features) == (40, False, ("amx",))
    assert parse_cpus("boot=2").topology is None
    assert (parse_cpus("2").nested, parse_cpus("2").features) == (False, ())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("4096", 4096),
        ("0x1000", 4096),
        ("8k", 8192),
        ("010M", 10 << 20),
        ("+2M", 2 << 20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert to_size("memory", text) == size


def test_memory() -> None:
    assert parse_memory("256M").size == 256 << 20
    memory = parse_memory("size=1G,shared=off,hugepages=on,prefault=on")
    assert (memory.size, memory.shared, memory.hugepages, memory.prefault) == (1 << 30, False, True, True)


def test_quotes_and_brackets_hold_commas() -> None:
    assert parse_disk('path="a,b.img"').path == Path("a,b.img")
    assert parse_disk('path="a[,""b"""').path == Path('a[,"b"')
    assert parse_disk("path=/tmp/[a,[b,c]],readonly=on").path == Path("/tmp/[a,[b,c]]")
    assert parse_net("fd=[3,4],num_queues=4").fd == (3, 4)
    assert parse_net('fd="[3,4]",num_queues=4').fd == (3, 4)
    assert parse_console("console", 'file="a,b",iommu=on').path == Path("a,b")


def test_nested_brackets_end_where_they_end() -> None:
    cpus = parse_cpus("boot=2,affinity=[0@[0-1],1@[2,4-5]],max=4")
    assert (cpus.max, cpus.affinity) == (4, ((0, (0, 1)), (1, (2, 4, 5))))
    assert parse_disk("path=/d,queue_affinity=[0@[1],3@[0-2]]").queue_affinity == ((0, (1,)), (3, (0, 1, 2)))


def test_of_what_a_list_names_twice_the_last_holds_and_is_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_cpus("boot=2,affinity=[0@[0],1@[1],0@[1-2]]").affinity == ((0, (1, 2)), (1, (1,)))
    assert parse_disk("path=/d,queue_affinity=[0@0,0@1]").queue_affinity == ((0, (1,)),)
    assert [record.getMessage() for record in caplog.records] == [
        "cpus.affinity.0: is given twice, and the last holds: '[1-2]'",
        "disk.queue_affinity.0: is given twice, and the last holds: '1'",
    ]


def test_what_is_remarked_on_is_text_that_can_be_written_whatever_was_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError):
        parse_net("tap=a,\udcff\x1b=\udcfe,\udcff\x1b=\x1b")
    assert [record.getMessage() for record in caplog.records] == [
        r"net.\udcff\x1b: is given twice, and the last holds: '\x1b'"
    ]


def test_ranges_in_lists() -> None:
    assert to_ints("x", "[1-3]") == (1, 2, 3)
    assert to_ints("x", "[1,3-5,0x10]") == (1, 3, 4, 5, 16)
    assert to_ints("x", "7") == (7,)
    assert to_ints("x", "[]") == ()
    assert to_pairs("x", "0@1") == ((0, (1,)),)
    assert parse_platform("num_pci_segments=4,iommu_segments=[1-3]").iommu_segments == (1, 2, 3)
    for bad in ("[3-1]", "[1-]", "[-1]", "[0-4294967295]", "[1,,2]", "[a]"):
        with pytest.raises(ConfigError, match=r"^x: "):
            to_ints("x", bad)


def test_a_key_with_nothing_after_it_is_not_set() -> None:
    assert parse_net("tap=,mac=,ip=,mask=,fd=,mtu=,num_queues=,offload_tso=") == parse_net("")
    assert parse_disk("path=/d,readonly=,serial=,image_type=,socket=") == parse_disk("path=/d")
    assert parse_cpus("boot=,max=,topology=") == CpusConfig()
    assert parse_rng("src=") == RngConfig()
    with pytest.raises(ConfigError, match=r"disk\.path: is missing"):
        parse_disk("path=,readonly=on")
    with pytest.raises(ConfigError, match=r"disk\.readonly: has no value \(say readonly=\.\.\.\)"):
        parse_disk("path=/d,readonly")


@pytest.mark.parametrize(
    ("parse", "text", "meant"),
    [
        (parse_disk, "/tmp/x.img", "path=/tmp/x.img"),
        (parse_disk, "/tmp/x.img,readonly=on", "path=/tmp/x.img"),
        (parse_pmem, "/p", "file=/p"),
        (parse_device, "/sys/bus/pci/devices/0000:01:00.0", "path=/sys"),
        (parse_net, "tap0", "tap=tap0"),
        (parse_disk, "path=/d,read_only=on", "readonly="),
    ],
)
def test_what_was_probably_meant_is_said(parse: Callable[[str], object], text: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="did you mean " + re.escape(meant)):
        parse(text)


def test_devices() -> None:
    disk = parse_disk("path=/x.img,readonly=on,direct=on,num_queues=4,queue_size=256,serial=abc,id=d0,pci_segment=1")
    assert (disk.readonly, disk.direct, disk.num_queues, disk.queue_size, disk.serial) == (True, True, 4, 256, "abc")
    assert (disk.id, disk.pci_segment) == ("d0", 1)
    assert parse_net("tap=,mac=2e:89:a8:e4:bf:01,mtu=9000,ip=10.0.0.1,mask=255.255.255.0").tap is None
    assert parse_net("tap=vm0,ip=fd00::1,mask=ffff:ffff:ffff:ffff::").ip == "fd00::1"
    assert parse_net("ip=10.0.0.1,mask=24").mask == "24"
    assert parse_rng("src=/dev/hwrng").src == Path("/dev/hwrng")
    assert parse_vsock("cid=5,socket=/tmp/s").cid == 5
    assert parse_pmem("file=/p,size=4M,discard_writes=on").discard_writes
    assert parse_fs("tag=home,socket=/s").queue_size == 1024
    assert parse_device("path=/sys/bus/pci/devices/0000:01:00.0,iommu=on").iommu
    assert parse_platform("num_pci_segments=4,iommu_segments=[1,2]").iommu_segments == (1, 2)


def test_consoles() -> None:
    assert parse_console("serial", "tty").mode is ConsoleMode.TTY
    assert parse_console("serial", "socket=/tmp/s").path == Path("/tmp/s")
    placed = parse_console("console", "tty,id=con0,pci_segment=1,pci_device_id=4,iommu=on")
    assert (placed.mode, placed.id, placed.pci_segment, placed.pci_device_id) == (ConsoleMode.TTY, "con0", 1, 4)
    assert placed.iommu
    filed = parse_console("console", "file=/tmp/f,iommu=on")
    assert (filed.mode, filed.path, filed.iommu) == (ConsoleMode.FILE, Path("/tmp/f"), True)
    for bad in ("tty,id=a", "file=/f,iommu=on", "file=/f,socket=/s", "tty,null"):
        with pytest.raises(ConfigError, match=r"^serial"):
            parse_console("serial", bad)
    with pytest.raises(ConfigError, match=r"^console\.socket: .* 107 bytes"):
        parse_console("console", "socket=" + "x" * 108)
    for bad in ("socket", "file=", "tty=x", "screen", ""):
        with pytest.raises(ConfigError, match="serial"):
            parse_console("serial", bad)


@pytest.mark.parametrize("name", ["b", "my disk", "b  c", "/b/c", "b;c", "b" * 64])
def test_ids_that_a_device_may_have(name: str) -> None:
    assert parse_disk(f"path=a,id={name}").id == name
    assert parse_disk(f'path=a,id="{name}"').id == name
    for other in (f" {name}", f"{name} "):
        with pytest.raises(ConfigError, match=r"a space at either end"):
            DiskConfig(path=Path("a"), id=other)


@pytest.mark.parametrize(
    ("parse", "text", "named"),
    [
        (parse_pmem, 'file="",size=16M', "pmem.file"),
        (parse_disk, 'path=""', "disk.path"),
        (parse_rng, 'src=""', "rng.src"),
        (parse_cpus, "boot=0", "cpus.boot"),
        (parse_cpus, "two", "cpus"),
        (parse_cpus, "\u00b2", "cpus"),
        (parse_cpus, "boot=4,max=2", "cpus.max"),
        (parse_cpus, "boot=2,topology=1:4:1:1", "cpus.topology"),
        (parse_cpus, "boot=2,topology=1:2", "cpus.topology"),
        (parse_cpus, "boot=2,topology=0:2:1:1", "cpus.topology"),
        (parse_cpus, "boot=1,max_phys_bits=31", "cpus.max_phys_bits"),
        (parse_cpus, "boot=1,core_scheduling=on", "cpus.core_scheduling"),
        (parse_cpus, "boot=1,features=sse9", "cpus.features"),
        (parse_cpus, "boot=1,kvm_hyperv=yes", "cpus.kvm_hyperv"),
        (parse_cpus, "boot=2,affinity=[0@[]]", "cpus.affinity"),
        (parse_memory, "size=1.5G", "memory.size"),
        (parse_memory, "size=5000T", "memory.size"),
        (parse_disk, "path=a,image_type=vmdk", "disk.image_type"),
        (parse_disk, "path=a,image_type=qcow2,serial=x", "disk.serial"),
        (parse_landlock_rule, "path=/,access=", "landlock-rules.access"),
        (parse_landlock_rule, "path=/,access=rwr", "landlock_rules.access"),
        (parse_landlock_rule, "path=/,access=rx", "landlock_rules.access"),
        (parse_platform, "uuid={12345678-1234-1234-1234-1234567890ab", "platform.uuid"),
        (parse_disk, "path=a,image_type=vhd,overlay=b", "disk.overlay"),
        (parse_disk, "path=a,image_type=vhdx,bw_size=1", "disk.bw_size"),
        (parse_disk, "path=a,overlay=a", "disk.overlay"),
        (parse_disk, "path=a,lock_granularity=none", "disk.lock_granularity"),
        (parse_disk, "vhost_user=on,socket=/s,image_type=raw", "disk.image_type"),
        (parse_disk, "path=a,pci_device_id=0", "disk.pci_device_id"),
        (parse_disk, "path=a,id=" + "b" * 65, "disk.id"),
        (parse_disk, 'path=a,id="b,c"', "disk.id"),
        (parse_disk, "path=a,id=b\tc", "disk.id"),
        (parse_disk, "path=a,pci_device_id=32", "disk.pci_device_id"),
        (parse_disk, "path=a,pci_segment=1,pci_device_id=32", "disk.pci_device_id"),
        (parse_disk, "path=a,pci_segment=1,pci_device_id=-1", "disk.pci_device_id"),
        (parse_disk, 'path="a', "disk"),
        (parse_disk, "path=[a", "disk"),
        (parse_disk, "path=a],x=[", "disk"),
        (parse_net, "ip=10.0.0.1", "net.mask"),
        (parse_net, "ip=10.0.0.1,mask=0.0.0.255", "net.mask"),
        (parse_net, "ip=10.0.0.1,mask=33", "net.mask"),
        (parse_net, "ip=10.0.0.1,mask=ffff::", "net.mask"),
        (parse_net, "ip=fd00::1,mask=255.255.255.0", "net.mask"),
        (parse_net, "ip=fd00::1,mask=ffff::ffff", "net.mask"),
        (parse_net, "ip=fe80::1%eth0,mask=64", "net.ip"),
        (parse_net, "ip=0.0.0.0,mask=24", "net.ip"),
        (parse_net, "ip=255.255.255.255,mask=24", "net.ip"),
        (parse_net, "ip=255.255.255.255,mask=32", "net.ip"),
        (parse_net, "tap=a/b", "net.tap"),
        (parse_net, "tap=a b", "net.tap"),
        (parse_net, "tap=x%d", "net.tap"),
        (parse_net, "fd=2", "net.fd"),
        (parse_net, "fd=4294967296", "net.fd"),
        (parse_net, "fd=[3,3],num_queues=4", "net.fd"),
        (parse_net, "host_mac=00:00:00:00:00:00", "net.host_mac"),
        (parse_memory, "12Q", "memory"),
        (parse_memory, "100", "memory.size"),
        (parse_memory, "1M", "memory.size"),
        (parse_disk, "readonly=on", "disk.path"),
        (parse_memory, "size=64M,mergeable=on,shared=on", "memory.mergeable"),
        (parse_disk, "path=a,queue_affinity=[0@[]]", "disk.queue_affinity"),
        (parse_disk, "path=a,image_type=qcow2,queue_affinity=[0@[0]]", "disk.queue_affinity"),
        (parse_disk, "vhost_user=on,socket=/s,queue_affinity=[0@[0]]", "disk.queue_affinity"),
        (parse_disk, "path=a,readonly=maybe", "disk.readonly"),
        (parse_disk, "path=a,queue_size=100", "disk.queue_size"),
        (parse_disk, "path=a,colour=red", "disk.colour"),
        (parse_disk, "path=a,serial=" + "x" * 21, "disk.serial"),
        (parse_disk, "path=a,vhost_user=on", "disk.socket"),
        (parse_net, "fd=-1", "net.fd"),
        (parse_net, "fd=[3--4]", "net.fd"),
        (parse_net, "tap=averyveryverylongname", "net.tap"),
        (parse_net, "host_mac=01:00:00:00:00:00", "net.host_mac"),
        (parse_net, "mac=nonsense", "net.mac"),
        (parse_net, "ip=10.0.0.300,mask=24", "net.ip"),
        (parse_net, "mask=255.0.0.0", "net.ip"),
        (parse_net, "fd=3,num_queues=4", "net.fd"),
        (parse_net, "mtu=12", "net.mtu"),
        (parse_net, "mtu=65522", "net.mtu"),
        *(
            (parse_net, f"vhost_user=on,socket=/x,{wrong}", f"net.{wrong.partition('=')[0]}")
            for wrong in NOT_WITH_VHOST_USER
        ),
        (parse_vsock, "socket=/x", "vsock.cid"),
        (parse_vsock, "cid=2,socket=/x", "vsock.cid"),
        (parse_pmem, "size=2M", "pmem.file"),
        (parse_pmem, "file=/x,size=3M", "pmem.size"),
        (parse_fs, "tag=,socket=/x", "fs.tag"),
        (parse_fs, "tag=t,socket=/x,num_queues=256", "fs.num_queues"),
        (parse_platform, "num_pci_segments=97", "platform.num_pci_segments"),
        (parse_platform, "uuid=1", "platform.uuid"),
    ],
)
def test_refusals_name_the_option(parse: object, text: str, named: str) -> None:
    assert callable(parse)
    with pytest.raises(ConfigError) as info:
        parse(text)
    assert info.value.option == named
    assert named in str(info.value)


def test_whole_machine_checks_what_parts_cannot() -> None:
    payload = Payload(kernel=Path("/k"))
    with pytest.raises(ConfigError, match="no segment 1"):
        VMConfig(payload, disks=(parse_disk("path=a,pci_segment=1"),))
    with pytest.raises(ConfigError, match="names two devices"):
        VMConfig(payload, disks=(parse_disk("path=a,id=x"), parse_disk("path=b,id=x")))
    with pytest.raises(ConfigError, match="slot 5 of segment 0 is given to two"):
        VMConfig(payload, disks=(parse_disk("path=a,pci_device_id=5"),), nets=(parse_net("pci_device_id=5"),))
    with pytest.raises(ConfigError, match="names two devices"):
        VMConfig(payload, console=parse_console("console", "null,id=x"), disks=(parse_disk("path=b,id=x"),))
    with pytest.raises(ConfigError, match="not on PCI"):
        VMConfig(payload, serial=parse_console("console", "null,id=x"))
    balloon, memory = parse_balloon("size=600M"), parse_memory("size=512M,hotplug_size=512M,hotplugged_size=256M")
    assert VMConfig(payload, memory=memory, balloon=balloon).balloon == balloon
    with pytest.raises(ConfigError, match="not less than the memory that there is"):
        VMConfig(payload, balloon=balloon)
    with pytest.raises(ConfigError, match="NUL"):
        Payload(kernel=Path("/k"), cmdline="a\0b")
    with pytest.raises(ConfigError, match="colour"):
        VMConfig(payload).with_changes({"colour": "red"})


def test_the_default_command_line_talks_on_the_console_that_is_there() -> None:
    payload = Payload(kernel=Path("/k"))
    assert "ttyS0" in VMConfig(payload).cmdline
    hvc = VMConfig(payload, serial=parse_console("serial", "off"), console=parse_console("console", "null"))
    assert "hvc0" in hvc.cmdline
    assert "ttyS0" not in hvc.cmdline
    none = VMConfig(payload, serial=parse_console("serial", "off"))
    assert "console=" not in none.cmdline


def test_two_consoles_on_the_terminal_say_all_once() -> None:
    modes: dict[str, Any] = {name: parse_console(name, "tty") for name in ("serial", "console")}
    assert VMConfig(Payload(kernel=Path("/k")), **modes).cmdline.count("console=") == 1


@pytest.mark.parametrize(("tty", "last"), [("serial", "ttyS0"), ("console", "hvc0"), (None, "ttyS0")])
def test_of_two_consoles_the_one_with_the_terminal_is_the_last(tty: str | None, last: str) -> None:
    modes: dict[str, Any] = {
        name: parse_console(name, "tty" if name == tty else "null") for name in ("serial", "console")
    }
    words = VMConfig(Payload(kernel=Path("/k")), **modes).cmdline.split()
    named = [word.removeprefix("console=") for word in words if word.startswith("console=")]
    assert sorted(named) == ["hvc0", "ttyS0"]
    assert named[-1] == last


def test_white_space_around_a_text_or_a_value_is_none_of_it() -> None:
    assert parse_disk(" path=/d ,readonly= on\n") == parse_disk("path=/d,readonly=on")
    assert parse_disk('path=" /d "').path == Path(" /d ")
    assert parse_net("  ") == parse_net("")


def made(**changes: object) -> VMConfig:
    return VMConfig(Payload(Path("/k")), **changes)  # type: ignore[arg-type]


def nodes(*texts: str) -> VMConfig:
    return made(cpus=parse_cpus("boot=2"), numa=tuple(parse_numa(text) for text in texts))


def zones(memory: str, *texts: str) -> VMConfig:
    return made(memory=parse_memory(f"size=0,{memory}"), memory_zones=tuple(parse_memory_zone(text) for text in texts))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (made(cpus=parse_cpus("boot=2,max=4,affinity=[3@[0],4@[0]]")), "no vCPU 4, the last of 4 is 3"),
        (made(nets=(parse_net("mac=01:00:5e:00:00:01"),)), "net0 has 01:00:5e:00:00:01, a multicast address"),
        (made(nets=(parse_net(""), parse_net("id=n,mac=00:00:00:00:00:00"))), "n has 00:00:00:00:00:00, nobody's"),
        (made(disks=(parse_disk("path=a,queue_affinity=[0@[0],1@[0]]"),)), "disk0 has no queue 1, it has 1"),
        (made(nets=(parse_net("num_queues=3"),)), "3 counts both directions: net0 has 1 queue pair"),
        (made(nets=(parse_net("num_queues=5,id=n"),)), "5 counts both directions: n has 2 queue pairs"),
        (nodes("guest_numa_id=0,cpus=[1-2]"), "numa.cpus: there is no processor 2, the last of 2 is 1"),
        (nodes("guest_numa_id=3,cpus=[0-1]", "guest_numa_id=1,cpus=1"), "numa.cpus: 1 is in node 3 and in 1"),
        (nodes("guest_numa_id=0,cpus=[0],distances=[0@20]"), "20 is said from node 0 to itself: it is 10"),
        (made(memory=parse_memory("size=64M,thp=on,shared=on")), "memory.thp: it has shared=on"),
        (made(memory=parse_memory("size=64M,thp=on,hugepages=on")), "memory.thp: it has hugepages=on"),
        (zones("thp=on", "id=a,size=64M", "id=b,size=64M,shared=on"), "memory.thp: b has shared=on"),
        (zones("mergeable=on", "id=a,size=64M", "id=b,size=64M,file=/f"), "memory.mergeable: b has a file"),
        (made(disks=(parse_disk("path=a,bw_refill_time=100"),)), "bw_refill_time: disk0 has no bw_size"),
        (made(nets=(parse_net("ops_refill_time=100,bw_size=1M,id=n"),)), "ops_refill_time: n has no ops_size"),
    ],
)
def test_what_has_less_of_an_effect_than_it_seems_to_have_is_remarked_on(config: VMConfig, said: str) -> None:
    (remark,) = remarks(config)
    assert said in remark


def test_what_has_its_effect_is_not_remarked_on() -> None:
    config = made(
        cpus=parse_cpus("boot=1,max=2,affinity=[1@[0]]"),
        nets=(parse_net("mac=2e:00:00:00:00:01"),),
        disks=(parse_disk("path=a,num_queues=2,queue_affinity=[1@[0]],bw_size=1M,bw_refill_time=100"),),
        memory=parse_memory("size=0,thp=on,mergeable=on"),
        memory_zones=(parse_memory_zone("id=a,size=64M"), parse_memory_zone("id=b,size=64M,mergeable=off")),
        numa=tuple(
            parse_numa(text) for text in ("guest_numa_id=0,cpus=[0,0],distances=[0@10]", "guest_numa_id=1,cpus=1")
        ),
    )
    assert not list(remarks(config))


def test_a_zone_is_made_as_the_memory_is_where_it_says_nothing() -> None:
    memory = parse_memory("size=0,shared=on,prefault=on,hugepages=on,hugepage_size=1G")
    zone = settled(parse_memory_zone("id=a,size=1G"), memory)
    assert (zone.shared, zone.prefault, zone.hugepages, zone.hugepage_size) == (True, True, True, 1 << 30)
    own = settled(parse_memory_zone("id=a,size=512M,shared=off,prefault=off,hugepages=off,reserve=on"), memory)
    assert (own.shared, own.prefault, own.hugepages, own.hugepage_size, own.reserve) == (
        False,
        False,
        False,
        None,
        True,
    )
    assert not settled(parse_memory_zone("id=a,size=512M,file=/f"), memory).hugepages
    with pytest.raises(ConfigError, match=r"memory_zone\.size"):
        made(memory=memory, memory_zones=(parse_memory_zone("id=a,size=512M"),))
