"""Whose turn it is, by what each has had: a fair queue over accounts, each with its own jobs in order.

An account's `used` is the seconds that it has had, or would have had if it had always wanted its share: what it did not want
while others were served is gone, but for GRACE. So whoever was idle, or takes little, comes before all that always want more, by
at most GRACE seconds; and of those each has as much as the others. Schedulers of processors go by the same rule.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

__all__ = ["GRACE", "Account", "FairQueue"]

GRACE = 0.0005
"""Seconds that one who was idle may have before those who were not."""

J = TypeVar("J")


class Account:
    """What somebody, a VM with all its devices, has had: `seconds` of the loop's time in all."""

    __slots__ = ("jobs", "listed", "seconds", "used")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.used = 0.0
        self.jobs: deque[object] = deque()  # that wait for their turn
        self.listed = False

    def charge(self, seconds: float) -> None:
        """It has had so much."""
        self.seconds += seconds
        self.used += seconds


class FairQueue(Generic[J]):
    """Jobs that wait. `take` gives the next: that of the account which has had least; of one account the first that came."""

    def __init__(self) -> None:
        self._heap: list[
            tuple[float, int, Account]
        ] = []  # accounts with jobs, by what they had used when they were put there
        self._floor = 0.0  # what those have used who are served
        self._number = 0  # of two that have used the same the first that came

    def __bool__(self) -> bool:
        return bool(self._heap)

    def put(self, account: Account, job: J) -> None:
        """A job of its, behind the others it has."""
        account.jobs.append(job)
        if not account.listed:
            if account.used < (least := self._floor - GRACE):  # it has no claim to what it did not want before
                account.used = least
            self._list(account)

    def take(self) -> tuple[Account, J] | None:
        """The next, to be charged for what it takes before anything else is taken. None: nobody waits."""
        heap = self._heap
        while heap:
            used, _, account = heapq.heappop(heap)
            if heap and account.used > used:  # charged meanwhile, and there are others
                self._list(account)
                continue
            account.listed = False
            if account.used > self._floor:
                self._floor = account.used
            job = account.jobs.popleft()
            if account.jobs:
                self._list(account)
            return account, job  # type: ignore[return-value]
        return None

    def begin(self, account: Account) -> None:
        """It has its turn at once, for nobody waits."""
        floor = self._floor
        if account.used < floor - GRACE:
            account.used = floor - GRACE
        elif account.used > floor:
            self._floor = account.used

    def _list(self, account: Account) -> None:
        self._number += 1
        account.listed = True
        heapq.heappush(self._heap, (account.used, self._number, account))
