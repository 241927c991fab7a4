"""A model of Vector's adaptive request concurrency: the limit, and the retries that go on within its places.

After vectordotdev/vector, in src/sinks/util: adaptive_concurrency/controller.rs (the limit), service.rs (what
is within what) and retries.rs (Fibonacci's pauses, with full jitter by default).
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from tests.pipeline.scenarios import Ran, Scenario, Server

Observer = Callable[[str, float, float], None]
"""Hears of a figure, its value and the time: what Vector's tests look at."""


class Controller:
    """Vector's `Controller`, with its defaults; a limit that is `fixed` stays."""

    def __init__(self, fixed: int | None = None) -> None:
        self.limit = fixed or 1
        self.in_flight = 0
        self._adaptive = fixed is None
        self._past: tuple[float, float] | None = None  # mean and variance
        self._next_update = 0.0
        self._rtts: list[float] = []
        self._had_back_pressure = False
        self._reached_limit = False

    def start(self) -> None:
        self.in_flight += 1
        if self.in_flight >= self.limit:
            self._reached_limit = True

    def end(self, now: float, rtt: float) -> float | None:
        """Hear of a request that succeeded in the end; give the averaged RTT when it decided."""
        self.in_flight -= 1
        self._rtts.append(rtt)
        current = round(sum(self._rtts) / len(self._rtts), 6)
        if self._past is None:
            self._past, self._next_update = (current, 0.0), now + current
            return None
        if now < self._next_update - 1e-9:
            return None
        mean, variance = self._past
        if self._adaptive:
            self._manage(current, mean, variance)
        difference = current - mean
        increment = 0.4 * difference
        self._past = mean + increment, 0.6 * (variance + difference * increment)
        self._next_update = now + self._past[0]
        self._rtts.clear()
        self._reached_limit = False
        return current

    def _manage(self, current: float, mean: float, variance: float) -> None:
        if self.limit < 200 and self._reached_limit and current <= mean:
            self.limit += 1
        elif self.limit > 1 and current >= mean + 2.5 * math.sqrt(variance):
            self.limit = max(1, int(self.limit * 0.9))


class Sink:
    """Vector's sink before a server, in time of its own.

    `tick` has timers fire on the millisecond after, as tokio's do; without `jitter` retries wait for the
    whole of their pause; `shuffle` draws the order of what falls within one millisecond.
    """

    def __init__(
        self,
        server: Server,
        *,
        fixed: int | None = None,
        tick: bool = False,
        jitter: random.Random | None,
        shuffle: random.Random | None = None,
        observe: Observer = lambda _name, _value, _now: None,
    ) -> None:
        self._server = server
        self._controller = Controller(fixed)
        self._tick, self._jitter, self._shuffle = tick, jitter, shuffle
        self._observe = observe
        self._timers: list[tuple[float, float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._waiting: deque[str] = deque()
        self.accepted: dict[str, float] = {}

    def run(self, arrivals: Sequence[float]) -> dict[str, float]:
        """Send events until all are accepted; give when each was."""
        for number, at in enumerate(arrivals):
            self._at(at, self._waiting.append, str(number))
        while len(self.accepted) < len(arrivals):
            now, _, _, do, arguments = heapq.heappop(self._timers)
            do(*arguments)
            if not self._timers or self._timers[0][0] > now:
                self._send(now)
        return self.accepted

    def _at(self, time: float, do: Callable[..., None], *arguments: Any) -> None:
        number = next(self._numbers)
        order = number if self._shuffle is None else self._shuffle.random()
        heapq.heappush(self._timers, (time, order, number, do, arguments))

    def _after(self, now: float, seconds: float, do: Callable[..., None], *arguments: Any) -> None:
        time = now + seconds
        if self._tick:
            time = math.ceil(round(time * 1000, 6)) / 1000 + 0.001
        self._at(time, do, time, *arguments)

    def _send(self, now: float) -> None:
        while self._waiting and self._controller.in_flight < self._controller.limit:
            self._observe("controller in_flight", self._controller.in_flight, now)
            self._controller.start()
            self._attempt(now, self._waiting.popleft(), now, 0.0, 1.0)

    def _attempt(self, now: float, name: str, start: float, before: float, pause: float) -> None:
        answer, seconds = self._server.call(name, now)
        done = self._succeeded if answer.accepted else self._failed
        self._after(now, seconds, done, name, start, before, pause)

    def _failed(self, now: float, name: str, start: float, before: float, pause: float) -> None:
        longer = min(before + pause, 30.0)
        waits = longer if self._jitter is None else self._jitter.uniform(0.0, longer)
        self._after(now, waits, self._attempt, name, start, pause, longer)

    def _succeeded(self, now: float, name: str, start: float, _before: float, _pause: float) -> None:
        self.accepted[name] = now
        self._observe("controller observed_rtt", now - start, now)
        self._observe("controller in_flight", self._controller.in_flight, now)
        limit = self._controller.limit
        averaged = self._controller.end(now, now - start)
        if averaged is not None:
            self._observe("controller averaged_rtt", averaged, now)
            self._observe("controller concurrency_limit", limit, now)


def run(scenario: Scenario, seed: int) -> Ran:
    """Give what the model makes of `scenario`."""
    server = scenario.server(seed)
    arrivals = scenario.arrivals(seed)
    return Ran(server, arrivals, Sink(server, jitter=random.Random(seed)).run(arrivals))
