"""A key at a line, which a program presses for somebody: how long it is down. Pure; the owner keeps the time.

A driver that is interrupted by an edge looks at the line afterwards (Linux's gpio-keys 5 ms later, in a work queue), and
reports what it finds: a key that is up again by then was never pressed, for it. And one that is pressed while no driver is
there must be down when one comes, which looks when it is opened. So the key stays down until the guest has looked while it
takes the line's interrupt, and so will hear of the release; and is not pressed again before that has been looked at. Who
polls, or takes the edge alone for a press, is given `PATIENCE`.
"""

from __future__ import annotations

import enum

__all__ = ["PATIENCE", "Key", "KeyState"]

PATIENCE = 5.0
"""Seconds from a sign that the guest has noticed, to the next step."""


class KeyState(enum.Enum):
    """After DOWN comes RELEASED, which is UP but that the guest may not have looked yet. AGAIN: it is to be pressed then."""

    UP = 0
    DOWN = 1
    RELEASED = 2
    AGAIN = 3


class Key:
    """One key. `waits`: the owner is to call `over` once PATIENCE has passed since the last call that made it true."""

    def __init__(self) -> None:
        self.restore(KeyState.UP)

    def restore(self, state: KeyState) -> None:
        """Put a state in force. What it waited for begins anew."""
        self.state = state
        self.waits = state in (KeyState.RELEASED, KeyState.AGAIN)

    @property
    def down(self) -> bool:
        """The level of its line."""
        return self.state is KeyState.DOWN

    def press(self) -> None:
        """Idempotent until the guest has noticed."""
        if self.state is KeyState.UP:
            self.restore(KeyState.DOWN)
        elif self.state is KeyState.RELEASED:
            self.state = KeyState.AGAIN

    def looked(self, listening: bool) -> None:
        """The guest has read the line; `listening`: it takes its interrupt."""
        if not self.down or listening:
            self.over()
        else:
            self.waits = True

    def acknowledged(self) -> None:
        """The guest has cleared the line's interrupt."""
        self.waits = self.waits or self.down

    def over(self) -> None:
        """The next step: up, or down again."""
        match self.state:
            case KeyState.DOWN:
                self.restore(KeyState.RELEASED)
            case KeyState.AGAIN:
                self.restore(KeyState.DOWN)
            case KeyState.RELEASED:
                self.restore(KeyState.UP)
