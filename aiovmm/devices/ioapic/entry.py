"""A redirection table entry, and the message it turns into.

Sources: Intel 82093AA data sheet (290566-001, May 1996), section 3.2.4; Intel SDM volume 3A, "Message Signalled
Interrupts": message address register format and message data register format. For APIC ids above 255 there is what
hypervisors have agreed on: their bits 14:8 in bits that are reserved (KVM_FEATURE_MSI_EXT_DEST_ID,
Documentation/virt/kvm/x86/cpuid.rst).
"""

from __future__ import annotations

__all__ = [
    "DELIVERY_STATUS",
    "LEVEL_TRIGGERED",
    "MASKED",
    "READ_ONLY",
    "REMOTE_IRR",
    "RESET",
    "WRITABLE",
    "message_address",
    "message_data",
    "vector_of",
]

_VECTOR = 0xFF
_DELIVERY_MODE = 0x700
_DEST_LOGICAL = 1 << 11
DELIVERY_STATUS = 1 << 12
_POLARITY = 1 << 13
REMOTE_IRR = 1 << 14
LEVEL_TRIGGERED = 1 << 15
MASKED = 1 << 16
_DESTINATION = 0xFF << 56
_WIDE_DESTINATION = 0x7F << 49  # bits 14:8 of an APIC id

READ_ONLY = DELIVERY_STATUS | REMOTE_IRR
WRITABLE = (
    _VECTOR | _DELIVERY_MODE | _DEST_LOGICAL | _POLARITY | LEVEL_TRIGGERED | MASKED | _DESTINATION | _WIDE_DESTINATION
)
RESET = MASKED

_MSI_BASE = 0xFEE00000
_MSI_LOGICAL = 1 << 2
_MSI_REDIRECT = 1 << 3  # redirection hint: with lowest priority delivery the processors arbitrate
_MSI_ASSERT = 1 << 14
_LOWEST_PRIORITY = 1 << 8


def vector_of(entry: int) -> int:
    """The interrupt vector, 0 to 255."""
    return entry & _VECTOR


def message_address(entry: int) -> int:
    """MSI address: destination in bits 19:12 and 11:5, destination mode in bit 2."""
    address = _MSI_BASE | (entry >> 56) << 12 | (entry >> 49 & 0x7F) << 5
    if entry & _DEST_LOGICAL:
        address |= _MSI_LOGICAL
    if entry & _DELIVERY_MODE == _LOWEST_PRIORITY:
        address |= _MSI_REDIRECT
    return address


def message_data(entry: int) -> int:
    """MSI data: vector and delivery mode where the entry has them, trigger mode in bit 15, always an assertion (bit 14)."""
    return entry & (_VECTOR | _DELIVERY_MODE | LEVEL_TRIGGERED) | (_MSI_ASSERT if entry & LEVEL_TRIGGERED else 0)
