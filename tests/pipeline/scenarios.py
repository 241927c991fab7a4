"""Other sides of many kinds, to see what a limit makes of each: the scenarios of the limit `concurrency`."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from bridge.core.ports import Answer, Verdict

ACCEPTED = Answer(Verdict.ACCEPTED, status=201)
DUPLICATE = Answer(Verdict.DUPLICATE, status=500)
TOO_MANY = Answer(Verdict.CAPACITY, "http_429", "too many requests", status=429)
QUOTA = Answer(Verdict.CAPACITY, "http_500", "exceeded quota", status=500)
TIMEOUT = Answer(Verdict.CAPACITY, "timeout", "no answer")
GONE = Answer(Verdict.UNAVAILABLE, "connect", "connection refused")


class Server:
    """Says at once what a call will come to, and after how many seconds. Time begins at 0."""

    timeout = 30.0
    """Seconds after which its callers hang up."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.calls = 0
        self.jobs: set[str] = set()
        self._ends: list[float] = []

    def call(self, name: str, now: float) -> tuple[Answer, float]:
        """Make the job `name`, or do not."""
        self.calls += 1
        answer, seconds = self._answer(name, now)
        return (answer, seconds) if seconds <= self.timeout else (TIMEOUT, self.timeout)

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        return self._make(name, self._seconds(now))

    def _seconds(self, _now: float) -> float:
        return 0.1

    def _make(self, name: str, seconds: float) -> tuple[Answer, float]:
        if name in self.jobs:
            return DUPLICATE, seconds
        self.jobs.add(name)
        return ACCEPTED, seconds

    def _in_hand(self, now: float) -> int:
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        return len(self._ends)

    def _take(self, until: float) -> None:
        heapq.heappush(self._ends, until)


class Jitter(Server):
    """100 ms, up to a half more or less."""

    def _seconds(self, _now: float) -> float:
        return 0.1 * self.rng.uniform(0.5, 1.5)


class Knee(Server):
    """As long for each call as for all that it found there, beyond 10."""

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        seconds = 0.1 * max(1.0, (self._in_hand(now) + 1) / 10)
        self._take(now + seconds)
        return self._make(name, seconds)


class HardLimit(Server):
    """Refuses above 5 in hand, as slowly as it accepts."""

    refusal: tuple[Answer, float] = (TOO_MANY, 0.1)

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        if self._in_hand(now) >= 5:
            return self.refusal
        self._take(now + 0.1)
        return self._make(name, 0.1)


class SilentDrop(HardLimit):
    """Does not answer above 5 in hand."""

    timeout = 1.0
    refusal = (TIMEOUT, math.inf)


class Rate(Server):
    """Refuses above `rate` calls a second, but for a burst."""

    def __init__(self, seed: int, rate: float = 100.0, burst: float = 10.0) -> None:
        super().__init__(seed)
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, 0.0

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return TOO_MANY, 0.05
        self._tokens -= 1.0
        return self._make(name, 0.05)


class Places(Server):
    """Works on some calls at once, in their order; the others wait, and it goes on after they hung up."""

    places = 10

    def _seconds(self, _now: float) -> float:
        return 0.05

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        before = self._in_hand(now)
        begins = now if before < self.places else heapq.nlargest(self.places, self._ends)[-1]
        ends = begins + self._seconds(now)
        self._take(ends)
        return self._make(name, ends - now)


class Outage(Places):
    """Is gone for a minute."""

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        return (GONE, 0.001) if 10.0 <= now < 70.0 else super()._answer(name, now)


class Drift(Places):
    """Gets ten times slower in two minutes."""

    places = 20

    def _seconds(self, now: float) -> float:
        return 0.05 + 0.45 * min(1.0, now / 120.0)


class Slowdown(Server):
    """Is ten times slower for a minute."""

    def _seconds(self, now: float) -> float:
        return 0.5 if 30.0 <= now < 90.0 else 0.05


class Throttle(Places):
    """Makes 2.5 jobs a second, one after the other, as client-go lets OSCAR."""

    places = 1

    def _seconds(self, _now: float) -> float:
        return 0.4


class Quota(Server):
    """Has room for two jobs of a second each."""

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        if self._in_hand(now) >= 2:
            return QUOTA, 0.005
        self._take(now + 1.0)
        return self._make(name, 0.05)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A server, and the events that come for it."""

    server: Callable[[int], Server]
    events: int
    rate: float = math.inf
    """Events a second, at random; all are there at the beginning when not given."""

    def arrivals(self, seed: int) -> list[float]:
        """Draw the seconds at which the events come."""
        if self.rate == math.inf:
            return [0.0] * self.events
        rng, at, found = random.Random(seed), 0.0, []
        for _ in range(self.events):
            at += rng.expovariate(self.rate)
            found.append(at)
        return found


SCENARIOS = {
    "ramp": Scenario(Server, 500),
    "jitter": Scenario(Jitter, 1000),
    "knee": Scenario(Knee, 1000),
    "hard limit": Scenario(HardLimit, 1000),
    "silent drop": Scenario(SilentDrop, 500),
    "rate": Scenario(Rate, 2000),
    "outage": Scenario(Outage, 20_000),
    "drift": Scenario(Drift, 3000, 25.0),
    "slowdown": Scenario(Slowdown, 3000, 25.0),
    "throttle": Scenario(Throttle, 200),
    "quota": Scenario(Quota, 200),
}


@dataclass(slots=True, repr=False)
class Ran:
    """What a scenario came to."""

    server: Server
    arrived: list[float]
    accepted: dict[str, float]
    """Seconds at which each event was accepted."""

    @property
    def goodput(self) -> float:
        """Events accepted a second."""
        return len(self.accepted) / max(self.accepted.values())

    @property
    def wasted(self) -> int:
        """Attempts that made no job."""
        return self.server.calls - len(self.server.jobs)

    @property
    def calls_a_job(self) -> float:
        return self.server.calls / len(self.server.jobs)

    def took(self, share: float) -> float:
        """Give the seconds from an event's arrival to its acceptance that so great a share keeps to."""
        took = sorted(self.accepted[str(number)] - at for number, at in enumerate(self.arrived))
        return took[min(len(took) - 1, int(len(took) * share))]

    def accepted_between(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at in self.accepted.values())
