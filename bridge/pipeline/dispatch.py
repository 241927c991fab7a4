"""What of a lane's events begins, and when: the one dispatcher between those that wait and the places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from bridge.core.ports import Answer
from bridge.pipeline.entrance import Entrance
from bridge.pipeline.jobs import Jobs
from bridge.pipeline.limits.alarm import Alarm
from bridge.pipeline.limits.allowance import Allowance
from bridge.pipeline.limits.config import LimitsConfig
from bridge.pipeline.limits.gate import Gate
from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD, Attempt, Limit
from bridge.pipeline.limits.pause import Pause
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.order import Order
from bridge.pipeline.places import Places
from bridge.pipeline.starving import Starving
from bridge.pipeline.waiting import Waiting

_BEGIN_AT_ONCE = 256
"""Attempts begun before the other tasks of the process have their turn: some 5 µs each."""


class Dispatcher:
    """Begins attempts: whenever something came, ended or fell due, as many as all limits allow.

    Nothing else begins one. What is asked for each attempt is asked by the plainest means: all of this is
    gone through for each event.
    """

    def __init__(
        self,
        config: LimitsConfig,
        gate: Gate,
        ring: Ring | None,
        pauses: Sequence[Pause],
        waiting: Waiting,
        places: Places,
        *,
        resumed: Callable[[], None],
    ) -> None:
        """Give `places` what comes next of `waiting`.

        `ring` has the limits that the lane shares with others of its cluster, `pauses` are those that a
        person may want of it; `resumed` is called when the last of those is over.
        """
        self.gate = gate
        self._ring = ring
        self._waiting = waiting
        self._places = places
        self._limits: list[Limit] = []
        """Those that are asked, and told, of each attempt."""
        self.allowance = Allowance(
            self._limits, config.concurrency, config.rate, counted=lambda: places.under_way
        )
        """After a change of it there has to be a `look`."""
        self._alarm = Alarm(self.look)
        self.held = False
        """Whether the last look found a limit in the way, not a lack of events: one more changes nothing."""
        self._pauses = pauses
        self._resumed = resumed
        self.paused_since = self._pause_began()
        """Monotonic time since which a person wants nothing to begin; None while nobody does."""
        for pause in pauses:
            pause.when_changed(self._paused_or_resumed)

    def connect(self, entrance: Entrance, order: Order, starving: Starving, jobs: Jobs | None) -> None:
        """Have these told of what begins. They ask this dispatcher themselves, so they are made later."""
        self._entrance = entrance
        self._order = order
        self._starving = starving
        self._jobs = jobs

    def since_when_shut(self) -> float | None:
        """Return the monotonic time since which nothing begins, but for probes; None while it does.

        The gate is shut then, or the lane is paused.
        """
        gate, paused = self.gate.shut_since, self.paused_since
        if gate is None or paused is None:
            return paused if gate is None else gate
        return min(gate, paused)

    @property
    def held_by(self) -> str | None:
        """Name the limit that an event waits for which could begin else; None where there is none such.

        It is `concurrency`, `rate` or `active_jobs`, or `cluster` for those that its services share.
        """
        if self._waiting.pause(monotonic()) > 0:
            return None
        if self._jobs is not None and not self._jobs.has_room:
            return "active_jobs"
        in_turn = self._ring is not None and self._ring.keeps(self)
        return self.allowance.held_by or ("cluster" if in_turn else None)

    def look(self) -> None:
        """Begin what may begin now, and set the one alarm for what may later."""
        self._look(monotonic())

    def look_soon(self) -> None:
        """Do so in the loop's next turn."""
        self._alarm.set(0.0)

    def close(self) -> None:
        """Begin nothing any more: the lane has ended."""
        self._alarm.set(NOT_BEFORE_TOLD)
        if self._ring is not None:
            self._ring.leave(self)

    def came(self) -> None:
        """Hear that something came into the lane."""
        if not self.held:
            self._look(monotonic())
        elif self._starving.now:
            self._starving.weigh()

    def ended(self, attempt: Attempt, answer: Answer, seconds: float, now: float) -> None:
        """Hear that `attempt`, whose place is free again, came to `answer`; begin what may in its place."""
        for limit in self._limits:
            limit.ended(attempt, answer, seconds)
        if not (answer.accepted and self.gate.at_ease):
            self._tell_gate(attempt, answer)
        ring = self._ring
        if ring is not None:
            for limit in ring.limits:
                limit.ended(attempt, answer, seconds)
            if ring.standing:
                ring.look()
                if ring.keeps(self):
                    # No alarm is needed: the ring calls `look` when this lane's turn comes, which sets it.
                    self._starving.weigh()
                    return
        self._look(now)

    def _tell_gate(self, attempt: Attempt, answer: Answer) -> None:
        was_shut = self.gate.shut_since
        self.gate.ended(attempt, answer, self._places.busy)
        if self.gate.shut_since != was_shut:
            self._entrance.patience_changed()

    def _look(self, now: float) -> None:
        places = self._places
        if not places.are_open:
            return
        pause = 0.0
        for _ in range(_BEGIN_AT_ONCE):
            if places.busy >= self.allowance.most:
                self.held, pause = True, NOT_BEFORE_TOLD
                break
            pause = self._pause(now)
            if pause > 0:
                break
            self._begin(now)
        if pause != NOT_BEFORE_TOLD or self._alarm.timer is not None:
            self._alarm.set(pause)
        if self._starving.told:
            self._starving.weigh()

    def _pause(self, now: float) -> float:
        """Give the seconds until one more may begin, as there is a place: 0 now."""
        gate, waiting = self.gate, self._waiting
        shut = gate.shut_since is not None
        if shut or not waiting.fresh:
            pause = waiting.pause(now, probe=shut)
            if pause > 0:
                self.held = False
                return pause
        self.held = True
        if self._jobs is not None:
            head = waiting.choice(now, probe=shut, in_doubt=gate.in_doubt)
            if self._jobs.pause(head) > 0:
                return NOT_BEFORE_TOLD
        if self.paused_since is not None:
            return NOT_BEFORE_TOLD
        pause = 0.0 if gate.at_ease else gate.pause(self._places.busy)
        for limit in self._limits:
            longer = limit.pause()
            if longer > pause:
                pause = longer
        if pause > 0:
            return pause
        if self._ring is not None and not self._ring.grant(self):
            return NOT_BEFORE_TOLD
        self.held = False
        return 0.0

    def _begin(self, now: float) -> None:
        gate, waiting = self.gate, self._waiting
        shut = gate.shut_since is not None
        delivery, place = waiting.take(now, probe=shut, in_doubt=gate.in_doubt)
        attempt = Attempt(delivery, now, place, shut)
        if shut:
            gate.began(attempt)
        for limit in self._limits:
            limit.began(attempt)
        if self._ring is not None:
            for limit in self._ring.limits:
                limit.began(attempt)
        if self._jobs is not None:
            self._jobs.began(attempt)
        if self._order.keys:
            self._order.began(delivery)
        self._places.begin(attempt)
        if len(waiting.fresh) <= self._entrance.roomy:
            self._entrance.has_room()

    # What a person wants

    def _pause_began(self) -> float | None:
        return min((pause.since for pause in self._pauses if pause.since is not None), default=None)

    def _paused_or_resumed(self) -> None:
        self.paused_since = self._pause_began()
        if self.paused_since is None:
            self._resumed()
        self._entrance.patience_changed()
        self.look()
