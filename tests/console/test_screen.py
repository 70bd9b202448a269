from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiovmm.console.screen import ScreenModes

OFF = b"\x1b[?1049l"


@given(
    parts=st.lists(st.sampled_from([b"\x1b[?1049h", OFF, b"text", b"\x1b[?25l"]), max_size=8),
    data=st.data(),
)
def test_the_alternate_screen_is_left_only_if_it_is_shown(parts: list[bytes], data: st.DataObject) -> None:
    modes, output = ScreenModes(), b"".join(parts)
    shown = output.rfind(b"\x1b[?1049h") > output.rfind(OFF)
    while output:
        cut = data.draw(st.integers(1, len(output)))
        modes.feed(output[:cut])
        output = output[cut:]
    assert modes.undo().startswith(OFF) == shown
    assert b"\x1b[?25h" in modes.undo()
