"""Kinds of virtio devices by the names that the reference monitor has for them (include/uapi/linux/virtio_ids.h)."""

from __future__ import annotations

__all__ = ["DEVICE_TYPES"]

_NAMES = """
1 net 2 block 3 console 4 rng 5 balloon 6 iomem 7 rpmsg 8 scsi 9 9p 10 mac80211_wlan 11 rproc_serial 12 caif 13
memory_balloon 16 gpu 17 clock 18 input 19 vsock 20 crypto 21 signal_dist 22 pstore 23 iommu 24 mem 25 sound 26 fs 27 pmem
28 rpmb 29 mac80211_hwsim 30 video_encoder 31 video_decoder 32 scmi 33 nitro_sec_mod 34 i2c 35 watchdog 36 can 37 dmabuf 38
param_serv 39 audio_policy 40 bt 41 gpio 42 rdma 43 camera 44 ism 45 spi 46 tee 47 cpu_balloon 48 media 49 usb
"""

_WORDS = _NAMES.split()
DEVICE_TYPES = {name: int(number) for number, name in zip(_WORDS[::2], _WORDS[1::2], strict=True)}
"""name -> VIRTIO device type."""
