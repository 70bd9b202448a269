"""virtio-pmem, VIRTIO 1.2 §5.19: a file of the host as memory of the guest, with the host's page cache as the only cache.

`backing` opens the file, `protocol` is the request on the wire, `device` answers flushes. The machine maps the file above RAM.
"""

from aiovmm.devices.virtio.pmem.backing import ALIGNMENT, Backing, open_backing
from aiovmm.devices.virtio.pmem.device import PmemDevice

__all__ = ["ALIGNMENT", "Backing", "PmemDevice", "open_backing"]
