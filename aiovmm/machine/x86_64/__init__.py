"""A PC without firmware.

board        Pc: what is made at each step of building a machine
legacy       its devices that are not on PCI
interrupts   messages to local APICs
tables       what firmware would tell: ACPI and MP tables
identity     SMBIOS, where anything is to be said of who the machine is
vcpus        processors as they come out of reset
blame        whose fault it is that a guest ended as it did
"""
