"""A guest with a disk and a network: what it writes to the disk is on the host afterwards, and it pings the host.

python -m examples.disk_and_network vmlinuz initramfs.cpio disk.img       (as root: it makes a TAP)
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiovmm import VM, DiskConfig, NetConfig, PayloadConfig, VMConfig, architecture

HOST, GUEST = "10.77.0.1", "10.77.0.2"
COMMANDS = (
    "mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt && echo written by the guest > /mnt/note && umount /mnt",
    f"ip address add {GUEST}/24 dev eth0 && ip link set eth0 up && ping -c 3 {HOST}",
)


async def run(config: VMConfig) -> None:
    """Boot, run the commands, print what the guest's shell said, power off."""
    async with VM(config) as vm:
        await vm.start()
        await vm.serial.expect(rb"guest:\S+ ?[#$] ", timeout=120)
        for command in COMMANDS:
            vm.serial.write(f"{command}; echo status''=$?\n".encode())  # so that its echo is not taken for the end
            print((await vm.serial.readuntil(b"status=0\r\n")).decode().replace("\r\n", "\n"))
        vm.serial.write(b"poweroff\n")
        await vm.wait()


if __name__ == "__main__":
    kernel, initramfs, image = map(Path, sys.argv[1:])
    if not image.exists():
        image.touch()
        with image.open("r+b") as file:
            file.truncate(64 << 20)
    payload = PayloadConfig(kernel, initramfs, f"console={architecture.host().serial} quiet panic=-1")
    disk, net = DiskConfig(path=image), NetConfig(ip=HOST, mask="255.255.255.0")
    asyncio.run(asyncio.wait_for(run(VMConfig(payload, disks=(disk,), nets=(net,))), 240))
