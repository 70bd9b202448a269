"""What was measured of different numbers of guests as curves."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.curves import curves, plot
from benchmarks.harness import Result, Target

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, value: float, target: Target | None = None) -> Result:
    return Result(name, "ms", target=target, samples={"aiovmm": [value]})


ROWS = [
    row("1,000 guests: start & stop", 20.0, Target(plus=10.0)),
    row("1 guests: start & stop", 2.0, Target(plus=10.0)),
    row("10 guests: start & stop", 0.0, Target(plus=10.0)),
    row("1 guests: alone", 5.0),
    row("creation", 5.0),
]


def test_a_curve_is_what_was_measured_of_several_numbers_in_their_order() -> None:
    assert {what: [count for count, _ in rows] for what, rows in curves(ROWS).items()} == {
        "start & stop": [1, 10, 1000]
    }


def test_more_is_further_up_and_more_guests_are_further_right() -> None:
    drawing = ElementTree.fromstring(plot(ROWS, "<here>"))
    (line,) = drawing.iter(f"{SVG}polyline")
    one, ten, thousand = ([float(part) for part in point.split(",")] for point in line.attrib["points"].split())
    assert one[0] < ten[0] < thousand[0]
    assert thousand[1] < one[1] < ten[1], "0 is at the bottom, where a logarithm has no place for it"
    (target,) = (line for line in drawing.iter(f"{SVG}line") if "stroke-dasharray" in line.attrib)
    assert thousand[1] < float(target.attrib["y1"]) < one[1]
    texts = [text.text for text in drawing.iter(f"{SVG}text")]
    assert "<here>" in texts
    assert "start & stop (ms)" in texts


def test_nothing_to_draw_is_a_document_all_the_same() -> None:
    assert not list(ElementTree.fromstring(plot([], "here")).iter(f"{SVG}polyline"))
