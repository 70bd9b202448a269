"""What comes and goes while a VM is there. Imported by the first VM of which something is asked.

devices     what is plugged into PCI
configured  the same as configuration, so that a VM made of it is the one that is there
waiting     for a guest to do what it was told
"""

from __future__ import annotations

__all__: list[str] = []
