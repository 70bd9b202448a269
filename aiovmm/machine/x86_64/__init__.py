"""A PC without firmware.

legacy   its devices that are not on PCI
tables   what firmware would tell: ACPI and MP tables
vcpus    processors as they come out of reset
"""
