"""How nodes of the tree name each other: phandles, and interrupts (interrupt-controller/arm,gic-v3.yaml). Pure."""

from __future__ import annotations

from aiovmm.boot.fdt import cells

__all__ = ["EDGE", "FIRST_CPU", "GIC", "GPIO", "IOMMU", "ITS", "LEVEL", "PCLK", "ppis", "spi", "spi_cells", "spi_edge"]

GIC, ITS, PCLK, GPIO, IOMMU = 1, 2, 3, 4, 5
FIRST_CPU = 16
"""Processor n has phandle FIRST_CPU + n."""
EDGE, LEVEL = 1, 4
_SPI, _PPI = 0, 1


def spi(number: int) -> bytes:
    """`interrupts` of a device that holds its line until it is served."""
    return cells(*spi_cells(number))


def spi_edge(number: int) -> bytes:
    """The same of one whose line rises for each interrupt."""
    return cells(_SPI, number, EDGE)


def spi_cells(number: int) -> tuple[int, int, int]:
    """The three cells of that."""
    return _SPI, number, LEVEL


def ppis(*numbers: int) -> bytes:
    """`interrupts` of what each processor has of its own."""
    return cells(*(cell for number in numbers for cell in (_PPI, number, LEVEL)))
