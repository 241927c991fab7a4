"""The limit `concurrency`: attempts under way at once, fixed or found."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from time import monotonic

from bridge.core.ports import Answer, Verdict
from bridge.pipeline.limits.config import AUTO_CEILING, Concurrency
from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD, Attempt

_START = 16.0
"""What a service is given that says nothing: what is found is never slower at the start than that."""
_FEW = 4.0
"""Attempts that may queue at the other side: fewer would leave it idle while an answer is on its way."""
_SAMPLES = 8
"""Acceptances that make a measurement (HyStart++'s, RFC 9406, 4.3)."""
_SLOWER = 1.5
"""An acceptance that costs so many times the least is looked into (Netflix's gradient2 tolerates as much)."""
_NOISE = 0.1
"""The share of refusals that is borne: a lower limit is no cure for an instance that refuses by chance."""
_WASTE = 0.2
"""The share of refusals, above that, with which no higher limit is kept, however much it brings."""
_LESS = 0.75
_MORE = 1.25
"""A step down, and one up (BBR's: Cardwell et al., ACM Queue 14(5), 2016)."""
_PROOF = 16
"""Rounds that a step up must hold: a bucket of tokens takes more than its rate until it is empty."""
_PATIENCE = 32
"""The most rounds between two steps up that failed."""
_PATIENCE_OF_PACES = 6
"""The same below one place, where a round takes longer: a quota that was raised is found within a minute."""
_HEARTBEAT = 1.0
"""The longest pause, in seconds: where a single service takes nothing, its gate makes longer ones. A pace
must hold for as long before it is doubled, since what was full is not full again at once."""
_GUESS = 0.05
"""Seconds that an acceptance is thought to cost where none was seen."""


def places(concurrency: Concurrency) -> Fixed | Auto:
    """Make the limit that is configured so."""
    return Auto(AUTO_CEILING) if concurrency == "auto" else Fixed(concurrency)


class Fixed:
    """Lets `limit` attempts be under way at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._under_way: set[Attempt] = set()

    @property
    def under_way(self) -> Collection[Attempt]:
        """The attempts that have places."""
        return self._under_way

    def take_over(self, attempts: Iterable[Attempt]) -> None:
        """Count what began under another limit. It may be more than this one allows."""
        self._under_way.update(attempts)

    def pause(self) -> float:
        """Give 0 while a place is free."""
        return 0.0 if len(self._under_way) < self.limit else NOT_BEFORE_TOLD

    def began(self, attempt: Attempt) -> None:
        """Take a place."""
        self._under_way.add(attempt)

    def ended(self, attempt: Attempt, _answer: Answer, _seconds: float) -> None:
        """Free its place."""
        self._under_way.remove(attempt)


class _Measured:
    """What came of attempts since the limit was changed, or last judged."""

    __slots__ = ("accepted", "events", "refused", "seconds")

    def __init__(self) -> None:
        self.accepted = 0
        self.seconds = 0.0
        """Of those accepted."""
        self.refused = 0.0
        """Attempts; a time-out that held its place for as long as five acceptances is five."""
        self.events: set[tuple[str, str]] = set()
        """Two of those refused: as many as it takes to know that it is not for one event's sake."""

    @property
    def share(self) -> float:
        """The refused of all."""
        return self.refused / (self.accepted + self.refused)

    @property
    def cost(self) -> float:
        """Seconds of a place that an acceptance takes, the refusals paid for."""
        return self.seconds / self.accepted / (1.0 - self.share)


class Auto:
    """Finds how many attempts at once the other side takes, at most `ceiling`.

    It does so by trials. A trial sets another level, waits for a round, until all that is under way began at
    that level, and then measures what an acceptance costs: seconds of a place, those for refusals included.
    Throughput is the level divided by that cost (Little's law). A higher level is kept if the throughput rose
    by at least half as much as the level: where attempts only queue, it does not rise at all. A lower one is
    tried when the cost is well above its least, or many are refused, and kept if at least half of what was
    given up was of no use. If it was not, the other side is slower, or refuses, for reasons of its own, and
    the old level comes back.

    - Steps up come only after rounds in which the level was reached (as in Vector's ARC). They are twofold
      first (slow start, RFC 5681, 3.1), then a quarter, and seldom where they have failed.
    - When two different events are told "not now" (`Verdict.CAPACITY`) without an acceptance between them,
      the level is quartered, once for all that were under way together. One event alone lowers nothing.
    - Below one place the level is a pace: 0.1 is one attempt in ten times the least cost. Rates and quotas
      that refuse even one attempt at a time begin there with one a second, which doubles each second (as in
      the slow and heartbeat modes of Hermes). A pace is halved, also when acceptances were between.
    - Nothing is learned from other answers, nor from none: an outage leaves the level as it is. Nor from the
      refusals of a service whose gate is shut already: its quota is full, which is no matter of the others.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = float(ceiling)
        self._level = self._proven = min(_START, self._ceiling)
        self._under_way: dict[Attempt, int] = {}
        """Each with its number, in the order of their beginning."""
        self._number = 0
        """Of the last that began."""
        self._before = 0
        """The last that began before the level was set."""
        self._doubles_to = self._ceiling
        """Steps up are twofold below this level, and small above."""
        self._fails = 0
        """Rounds between steps up, by how often they failed."""
        self._rounds = 0
        """Still to pass: of a trial until it is proven, else until the next."""
        self._measured = _Measured()
        self._filled = False
        """Whether a round has passed since the level was set."""
        self._of_round = 0
        """Attempts still under way of those that were when the level was reached."""
        self._reached = 0
        """The last of those."""
        self._refused: set[tuple[str, str]] = set()
        """Two of the events refused since the last acceptance."""
        self._cost = self._least = 0.0
        """Seconds that an acceptance cost at the proven level, and at its cheapest."""
        self._noise = 0.0
        """The share of refusals that no lower level would cure."""
        self._began = 0.0
        """Monotonic time of the last beginning."""

    @property
    def limit(self) -> int:
        """Attempts that may be under way at once, now."""
        return max(1, int(self._level))

    @property
    def under_way(self) -> Collection[Attempt]:
        """The attempts that have places."""
        return self._under_way.keys()

    def take_over(self, attempts: Iterable[Attempt]) -> None:
        """Count what began under another limit: it tells nothing of this one."""
        for attempt in attempts:
            self._number += 1
            self._under_way[attempt] = self._number
        self._before = self._number

    def pause(self) -> float:
        """Give 0 while a place is free, the seconds to the next turn if it is a pace."""
        level, under_way = self._level, len(self._under_way)
        if under_way and under_way >= level:
            return NOT_BEFORE_TOLD
        if level >= 1.0:
            return 0.0
        return max(0.0, self._began + min(self._least / level, _HEARTBEAT) - monotonic())

    def began(self, attempt: Attempt) -> None:
        """Take a place; a round begins with the attempt that takes the last one."""
        self._number += 1
        self._under_way[attempt] = self._number
        self._began = attempt.began
        if not self._of_round and len(self._under_way) >= int(self._level):
            self._reached = self._number
            self._of_round = len(self._under_way)

    def ended(self, attempt: Attempt, answer: Answer, seconds: float) -> None:
        """Free its place and learn of its answer; judge the level when a round is over."""
        number = self._under_way.pop(attempt)
        if answer.accepted:
            if self._refused:
                self._refused.clear()
            self._measured.accepted += 1
            self._measured.seconds += seconds
            if not self._least:
                self._least = seconds
        elif answer.verdict is Verdict.CAPACITY and not answer.ours and not attempt.probe:
            self._turned_away(attempt, number, seconds)
        if self._of_round and number <= self._reached:
            self._of_round -= 1
            if not self._of_round:
                self._round_over()

    def _turned_away(self, attempt: Attempt, number: int, seconds: float) -> None:
        if len(self._refused) < 2:
            self._refused.add(attempt.event)
        if number <= self._before:
            return  # it tells of the level before
        measured = self._measured
        if len(measured.events) < 2:
            measured.events.add(attempt.event)
        measured.refused += max(1.0, seconds / self._least) if self._least else 1.0
        if self._level > self._proven:
            if self._too_many((1.0 - self._proven / self._level) / 2):
                self._step_failed()
        elif (self._level < 1.0 or len(self._refused) == 2) and self._too_many(_NOISE):
            self._set(self._lower(0.25 if self._level > 1.0 else 0.5 if self._level < 1.0 else 0.0))
            self._proven = self._level

    def _too_many(self, share: float) -> bool:
        """Tell whether more are refused than `share` above the noise, and not by chance."""
        measured = self._measured
        by_chance = 2.0 if self._noise else 1.0
        allowed = (self._noise + share) * (measured.accepted + measured.refused)
        return len(measured.events) == 2 and measured.refused > by_chance + allowed

    def _round_over(self) -> None:
        if self._proven <= self._level < min(1.0, self._doubles_to):
            all_of_a_heartbeat = self._level / self._least * _HEARTBEAT
            if self._measured.accepted >= all_of_a_heartbeat:
                self._proven = self._level
                self._step_up()
        elif not self._filled:
            self._filled = True
            self._measured = _Measured()
        elif self._measured.accepted >= _SAMPLES:
            self._judge()

    def _judge(self) -> None:
        level, proven, measured = self._level, self._proven, self._measured
        cost = measured.cost
        if level < proven:
            self._judge_lower(cost)
        elif level > proven:
            dear = level > 1.0 and cost > self._cost * (1.0 + (level / proven - 1.0) / 2)
            if dear or measured.share > self._noise + _WASTE:
                self._step_failed()
            elif self._rounds:
                self._rounds -= 1
            else:
                if not self._fails and level > 1.0:  # the second in a row: there is more room than there was
                    self._doubles_to = self._ceiling
                self._fails = 0
                self._proven = level
                self._go_on(cost)
        elif level > _FEW and cost > self._least * _SLOWER:
            self._cost = cost
            self._set(self._lower(_LESS, least=_FEW))
        elif len(measured.events) == 2 and measured.share > self._noise + _NOISE:
            self._cost = cost
            self._set(self._lower(_LESS))
        else:
            self._go_on(cost)

    def _judge_lower(self, cost: float) -> None:
        """Keep the lower level if it made acceptances cheaper; if not, what it was to cure is not ours."""
        level, proven = self._level, self._proven
        if cost > self._cost * (1.0 - (1.0 - level / proven) / 2):
            self._noise = self._measured.share
            if proven >= 1.0:
                self._least = cost
            self._set(proven)
        else:
            self._proven = level
            if level < 1.0:  # refusals, unlike round trips, are no matter of chance
                self._doubles_to = level
            self._measured = _Measured()
        self._cost = cost

    def _go_on(self, cost: float) -> None:
        """Remember what an acceptance costs at the proven level, and step up when it is time."""
        share = min(self._measured.share, max(self._noise, _NOISE))
        self._noise += (share - self._noise) / 4
        if self._noise < 0.01:
            self._noise = 0.0
        self._cost = cost
        if self._level >= 1.0:
            self._least = min(cost, self._least + (cost - self._least) / 16)
        self._measured = _Measured()
        if self._rounds:
            self._rounds -= 1
        else:
            self._step_up()

    def _step_up(self) -> None:
        level = self._level
        self._rounds = 0
        if level < self._doubles_to:
            higher = min(level * 2, self._doubles_to, 1.0 if level < 1.0 else self._ceiling)
        elif level < 1.0:
            higher = min(level * (_MORE if self._fails else 2.0), 1.0)
            self._rounds = 1
        else:
            higher = max(level + 1.0, float(int(level * _MORE)))
            self._rounds = _PROOF
        higher = min(higher, self._ceiling)
        if higher > level:
            self._set(higher)

    def _step_failed(self) -> None:
        self._doubles_to = self._proven
        patience = _PATIENCE if self._proven >= 1.0 else _PATIENCE_OF_PACES
        self._fails = self._rounds = min(2 * self._fails + 1, patience)
        self._set(self._proven)

    def _lower(self, part: float, *, least: float = 1.0) -> float:
        if self._level > 1.0:
            return max(least, float(int(self._level * part)))
        self._least = self._least or _GUESS
        return max(self._level * part, min(self._level, 0.5, self._least / _HEARTBEAT))

    def _set(self, level: float) -> None:
        self._level = level
        self._before = self._number
        self._measured = _Measured()
        self._filled = False
        self._of_round = 0
