"""virtio-iommu, VIRTIO 1.2 §5.13: what other devices may reach of guest memory, as the guest says.

`wire` is the format, `mappings` and `domains` the pure state machine, `table` and `translation` what rings and devices use,
`device` the shell. A device behind the IOMMU is given a `Translation` instead of guest memory and knows of nothing else.
"""

from aiovmm.devices.virtio.iommu.device import Endpoint, IommuDevice
from aiovmm.devices.virtio.iommu.translation import Translation

__all__ = ["Endpoint", "IommuDevice", "Translation"]
