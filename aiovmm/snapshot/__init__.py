"""A guest's state and memory on disk or as a base for others, and guests that go on from there.

document        the state as text that a human can read, with a checksum
configuration   a VMConfig as plain data
directory       the files of a snapshot: written aside and put in place at once
chain           a snapshot and those that it is over
dirty           which pages were written since the last one
increment       a file of these alone
pages           the memory that has something in it, copied, summed up, mapped
received        memory that comes from elsewhere
base            memory that several guests have in common, counted
taking          a snapshot of a VM
restoring       a VM that goes on from one
template        a frozen VM, and its forks
identity        what makes a fork somebody else

See docs/snapshots.md for the format and what is guaranteed.
"""

from __future__ import annotations
