"""ACPICA's own compiler, disassembler and interpreter: the same code that reads the tables in a Linux guest."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 50
# What acpiexec of 2025 forgets to free as it ends, of any table: its debugger's, of which the interpreter in Linux has none.
_ITS_OWN_BOOKKEEPING = re.compile(r"^ACPI Error: .* Outstanding cache allocations \(\d+/uttrack-\d+\)$", re.MULTILINE)


def installed() -> bool:
    return all(shutil.which(tool) for tool in ("iasl", "acpiexec"))


def without_creator(table: bytes) -> bytes:
    """A table with the fields blanked that a compiler signs with its own name: checksum, creator ID and revision."""
    return table[:9] + b"\0" + table[10:28] + bytes(8) + table[36:]


@dataclass(frozen=True)
class RoundTrip:
    """A table, disassembled and compiled again."""

    source: str
    compiled: bytes
    errors: int
    warnings: int
    output: str


class Acpica:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, timeout=TIMEOUT)
        return done.stdout + done.stderr

    def compile(self, asl: str) -> bytes:
        """The AML of `asl`, the body of a definition block, without the table header."""
        block = f'DefinitionBlock ("", "DSDT", 2, "AIOVMM", "TESTTEST", 1)\n{{\n{asl}\n}}\n'
        (self.directory / "case.dsl").write_text(block)
        output = self._run("iasl", "-p", "case", "case.dsl")
        assert "Compilation successful. 0 Errors, 0 Warnings" in output, output
        return (self.directory / "case.aml").read_bytes()[36:]

    def round_trip(self, table: bytes) -> RoundTrip:
        (self.directory / "table.aml").write_bytes(table)
        disassembly = self._run("iasl", "-d", "table.aml")
        source = (self.directory / "table.dsl").read_text()
        output = self._run("iasl", "-p", "again", "table.dsl")
        counts = re.search(r"(\d+) Errors, (\d+) Warnings", output)
        assert counts is not None, disassembly + output
        compiled = (self.directory / "again.aml").read_bytes()
        return RoundTrip(source, compiled, int(counts[1]), int(counts[2]), disassembly + output)

    def execute(self, dsdt: bytes, *commands: str, region_fill: int = 0) -> str:
        """Load `dsdt` as the DSDT of a hardware-reduced machine, run debugger commands; regions read as `region_fill`."""
        (self.directory / "dsdt.aml").write_bytes(dsdt)
        batch = ";".join(commands)
        output = self._run("acpiexec", "-r", "-fv", hex(region_fill), "-b", batch, "dsdt.aml")
        # The command "resources" also tries to set them, which no fixed device allows.
        output = output.replace("AcpiSetCurrentResources failed: AE_NOT_FOUND", "")
        output = _ITS_OWN_BOOKKEEPING.sub("", output)
        problem = re.search(r".*(ACPI (BIOS )?(Error|Warning|Exception)|AE_\w+|Could not).*", output)
        assert problem is None, problem[0] + "\n" + output
        return output
