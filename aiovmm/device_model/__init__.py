"""The device model as a table: what guests can be given, and what of it this version has.

The text of a row is written down; what can be found out is not: whether the device is wired in is asked of the machine that
would plug it, and features are those that the device's code offers. `aiovmm devices` and docs/devices.md print it.
"""

from __future__ import annotations

from aiovmm.device_model.row import DeviceRow
from aiovmm.device_model.rows import all_rows, device_rows
from aiovmm.device_model.text import as_markdown, as_text

__all__ = ["DeviceRow", "all_rows", "as_markdown", "as_text", "device_rows"]
