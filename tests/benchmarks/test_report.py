"""What a benchmark shows: a table, JSON, a plot."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from benchmarks.harness import Result, Target
from benchmarks.report import as_json, markdown, plot, table

SVG = "{http://www.w3.org/2000/svg}"
SLOWER = Result("<boot> & init", "s", "ours", ("QEMU",), Target(0.8), {"QEMU": [4.0, 5.0], "ours": [8.0, 9.0]})
FASTER = Result("reads", "IOPS", "ours", ("QEMU",), Target(1.0, most=False), {"QEMU": [1e4], "ours": [2e4]})
ALONE = Result("cost", "us", "ours", (), Target(plus=1.0), {"ours": [0.5]}, {"requests": "2,000,000"})


def test_the_table_says_medians_spread_ratio_and_verdict() -> None:
    text = table(SLOWER)
    assert "QEMU                              4.5           4           5" in text
    assert "1.89 x QEMU (1.80 to 2.00 in a round); target: at most 0.8 x: MISSED" in text
    assert "20,000" in table(FASTER)
    assert "target: at least 1 x: met" in table(FASTER)


def test_notes_stand_below() -> None:
    assert table(ALONE).endswith("  target: at most 1 us: met\n  requests: 2,000,000")


def test_json_has_what_machines_want() -> None:
    data = json.loads(as_json([SLOWER, ALONE], {"kernel": "6.1"}))
    assert data["where"] == {"kernel": "6.1"}
    slower, alone = data["results"]
    assert slower["medians"] == {"QEMU": 4.5, "ours": 8.5}
    assert slower["met"] is False
    assert alone["ratio"] is None


def test_a_document_gets_a_row_a_result() -> None:
    rows = markdown([SLOWER, ALONE]).splitlines()[2:]
    assert rows[0] == "| <boot> & init | 8.5 s | 4.5 (QEMU) | 1.89 (1.80 to 2.00) | at most 0.8 x | **missed** |"
    assert rows[1] == "| cost | 0.5 us |  |  | at most 1 us | met |"


def test_the_plot_is_well_formed_and_has_a_bar_for_each_comparison() -> None:
    root = ElementTree.fromstring(plot([SLOWER, FASTER, ALONE], "a < b"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "<boot> & init" in texts
    assert "1.89 x QEMU" in texts
    assert "a < b" in texts
    assert "cost" not in texts  # nothing to compare it with
    assert len(list(root.iter(f"{SVG}circle"))) == 3  # one a round


def test_better_and_worse_go_to_different_sides_of_one() -> None:
    root = ElementTree.fromstring(plot([SLOWER, FASTER], ""))
    one = next(float(line.get("x1", "")) for line in root.iter(f"{SVG}line") if line.get("stroke") == "#888")
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.get("fill-opacity")]
    assert [float(bar.get("x", "")) for bar in bars] == [one, one]  # both are more than the peer
    assert [bar.get("fill") for bar in bars] == ["#b5483a", "#2a7f62"]  # of which one is bad and one good


def test_a_plot_of_nothing_is_still_a_document() -> None:
    assert ElementTree.fromstring(plot([], "nothing")).tag == f"{SVG}svg"
