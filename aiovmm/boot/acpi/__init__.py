"""ACPI (6.4) as far as it is the same on every machine: AML, the shape of tables, MCFG and VIOT."""
