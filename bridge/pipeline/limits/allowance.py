"""The limits `concurrency` and `rate` of one lane or ring, which may change while attempts are under way."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf

from bridge.pipeline.limits.concurrency import Auto, Fixed, places
from bridge.pipeline.limits.config import Concurrency
from bridge.pipeline.limits.limit import Attempt, Limit
from bridge.pipeline.limits.pace import Pace


class Allowance:
    """Keeps both among the `limits` that are asked, and exact when they change.

    Whoever asks them has to look again after a change.
    """

    def __init__(
        self,
        limits: list[Limit],
        concurrency: Concurrency,
        rate: float | None,
        counted: Callable[[], Collection[Attempt]] | None = None,
    ) -> None:
        """Keep them in `limits`.

        Who knows its attempts under way gives them by `counted`, and compares their number with `most`: then
        a fixed `concurrency` is none of the limits, and costs an attempt nothing.
        """
        self._limits = limits
        self._counted = counted
        self._wanted: Concurrency = concurrency
        self._pace: Pace | None = None
        self._places = places(concurrency)
        self.most = inf
        """Attempts at once, as far as whoever counts them has to see to it."""
        self._put_in_force()
        self._set_rate(rate)

    @property
    def at_once(self) -> int:
        """Attempts that may be under way at once, now: as set, or as found."""
        return self._places.limit

    @property
    def under_way(self) -> Collection[Attempt]:
        """The attempts that have places."""
        return self._places.under_way if self._counted is None else self._counted()

    @property
    def held_by(self) -> str | None:
        """Name the limit that lets nothing begin now; None where neither is in the way."""
        if len(self.under_way) >= self.most or (self.most == inf and self._places.pause() > 0):
            return "concurrency"
        return "rate" if self._pace is not None and self._pace.pause() > 0 else None

    def change(self, concurrency: Concurrency, rate: float | None) -> None:
        """Put others in force; what is as before goes on as it is."""
        if concurrency != self._wanted:
            self._wanted = concurrency
            if isinstance(self._places, Fixed) and concurrency != "auto":
                self._places.limit = concurrency
            else:
                self._replace_places(concurrency)
            self._put_in_force()
        self._set_rate(rate)

    def _replace_places(self, concurrency: Concurrency) -> None:
        """Count anew in another object, beginning with what is under way."""
        under_way = self.under_way
        if self._places in self._limits:
            self._limits.remove(self._places)
        self._places = places(concurrency)
        if self._counted is None or isinstance(self._places, Auto):
            self._places.take_over(under_way)

    def _put_in_force(self) -> None:
        if self._counted is not None and isinstance(self._places, Fixed):
            self.most = self._places.limit
            return
        self.most = inf
        if self._places not in self._limits:
            self._limits.insert(0, self._places)  # most often in the way, and then the others are not asked

    def _set_rate(self, rate: float | None) -> None:
        if rate is None:
            if self._pace is not None:
                self._limits.remove(self._pace)
                self._pace = None
        elif self._pace is None:
            self._pace = Pace(rate)
            self._limits.append(self._pace)
        else:
            self._pace.change(rate)
