"""Flattened device trees: nodes with properties, and the blob that a kernel is given of them. Pure; knows no machine.

tree = Node("", {"#address-cells": cells(2)}, (Node("chosen", {"bootargs": strings("quiet")}),))
blob = flatten(tree)

Source: Devicetree Specification, release 0.4.
"""

from __future__ import annotations

from aiovmm.boot.fdt.blob import flatten
from aiovmm.boot.fdt.node import EMPTY, Node, cells, quads, raw_string, strings

__all__ = ["EMPTY", "Node", "cells", "flatten", "quads", "raw_string", "strings"]
