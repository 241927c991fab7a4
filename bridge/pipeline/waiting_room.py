"""Where the events of a lane are until their attempts: let in, kept in order, parked and brought back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bridge.core.delivery import Delivery, Outcome, watch_all
from bridge.core.journal import Journal
from bridge.core.ports import Keeper
from bridge.pipeline.config import LaneConfig
from bridge.pipeline.dead import Burials
from bridge.pipeline.dispatch import Dispatcher
from bridge.pipeline.entrance import Entrance
from bridge.pipeline.failures import Failures
from bridge.pipeline.jobs import Jobs
from bridge.pipeline.order import Order
from bridge.pipeline.parking import Parking
from bridge.pipeline.places import Places
from bridge.pipeline.retry import Past
from bridge.pipeline.starving import Starving
from bridge.pipeline.waiting import PROBERS, Waiting


class WaitingRoom:
    """Takes events in and lets go of those that settle, and tells all who know of them."""

    def __init__(
        self,
        key: str,
        config: LaneConfig,
        keeper: Keeper,
        journal: Journal,
        *,
        waiting: Waiting,
        dispatcher: Dispatcher,
        places: Places,
        failures: Failures,
        burials: Burials,
        jobs: Jobs | None,
    ) -> None:
        """Serve the lane `key`: `dispatcher` begins what is `waiting`, in `places`."""
        self._queue = config.queue
        self.waiting = waiting
        self._dispatcher = dispatcher
        self._places = places
        self._failures = failures
        self._burials = burials
        self._jobs = jobs
        self.hears = self._settled
        """The watcher of each event in the lane; one object, so that `Delivery.settle` knows it."""
        self.parking = Parking(
            key,
            keeper,
            journal,
            room=self._room_for_parked,
            put_back=self._put_back,
            key_has_room=lambda key: self.order.has_room(key),
            left=self.hears,
            changed=self._parking_changed,
        )
        self.order = Order(
            key,
            waiting,
            self.parking,
            queue=config.queue,
            parks=lambda: self.entrance.parks,
            let_go=self._let_next_go,
            park=self._write,
        )
        self.entrance = Entrance(
            config,
            waiting,
            self.parking,
            self.order,
            shut_since=dispatcher.since_when_shut,
            enter=self._enter,
            park=self._park,
        )
        self.starving = Starving(
            config.queue, waiting, self.parking, jobs, shut_since=dispatcher.since_when_shut
        )

    def take_all(self, deliveries: Sequence[Delivery]) -> int:
        """Queue the first of `deliveries`, which go in no order, as far as they need not wait.

        Return how many are here now. It stops before one that has settled, and one that can't be read.
        """
        dispatcher = self._dispatcher
        if dispatcher.paused_since is not None or dispatcher.gate.shut_since is not None:
            return 0
        here = self.entrance.admit(deliveries)
        if not here:
            return 0
        if here < len(deliveries):
            deliveries = deliveries[:here]
        watch_all(deliveries, self.hears)
        if self._jobs is None:
            self.waiting.come_all(deliveries)
        else:
            for delivery in deliveries:
                self._jobs.come(delivery)
        dispatcher.came()
        return here

    async def put(
        self, delivery: Delivery, crowded: Callable[[], bool], *, at_once: bool, order_key: int | None
    ) -> None:
        """Queue or park `delivery`, as `Lane.put` says."""
        if order_key is not None:
            self.order.keys[delivery] = order_key
        delivery.watch(self.hears)
        await self.entrance.put(delivery, crowded, at_once=at_once)

    def in_hand(self) -> Iterator[tuple[Delivery, str]]:
        """Give all that is here as it is now, each with what becomes of it, for a person."""
        for before, delivery in enumerate(list(self.waiting)):
            turn = f"it waits for its turn, with {before} before it" if before else "it comes next"
            yield delivery, self.order.waits_for(delivery) or turn
        for delivery in self.entrance.held:
            yield delivery, "the lane is full, and it waits for room"
        for delivery in self.parking.leaving:
            yield delivery, "it is on its way into the store"

    def close(self) -> None:
        """Stop taking events out of the store, and let go of those not under way: the bridge stops."""
        back = self.parking.close()
        for delivery in list(self.order.overtaking()):
            delivery.settle(Outcome.RELEASED)
        for delivery in back:
            if self.waiting.leave(delivery):
                self._places.forget(delivery)
                delivery.settle(Outcome.RELEASED)

    # What comes

    def _enter(self, delivery: Delivery) -> None:
        if delivery not in self.order.keys or self.order.come(delivery):
            self._let_go(delivery)
        self._dispatcher.came()

    def _put_back(self, delivery: Delivery, past: Past | None, order_key: int | None) -> None:
        if order_key is not None:
            self.order.keys[delivery] = order_key
        if past is not None:
            self._failures.remember(delivery, past)
        if not self.parking.owns(delivery):
            self.entrance.may_hold_unstored()
        self._enter(delivery)

    def _let_go(self, delivery: Delivery) -> None:
        if self._jobs is not None:
            self._jobs.come(delivery)
        else:
            self.waiting.come(delivery)

    def _let_next_go(self, delivery: Delivery) -> None:
        """Let one go that has waited for another to come to its end: soon, since it may be let go of too."""
        self.waiting.leave(delivery)
        self._let_go(delivery)
        self._dispatcher.look_soon()

    # What leaves

    def _park(self, delivery: Delivery) -> None:
        if delivery in self.order.keys:
            self.order.park(delivery)
        else:
            self._write(delivery, None)

    def _write(self, delivery: Delivery, order_key: int | None) -> None:
        self.waiting.leave(delivery)
        self._places.forget(delivery)
        self.parking.take(delivery, self._failures.past(delivery), order_key)

    def _settled(self, delivery: Delivery, outcome: Outcome) -> None:
        if self._failures.forget(delivery):
            self._burials.left(delivery)
        elif outcome is Outcome.ACCEPTED and self._jobs is None and not self.order.keys:
            # It was accepted at its first attempt, so it is nowhere else any more: without jobs and keys
            # nobody but `Endings` may settle ACCEPTED, which then does not call this at all, but for an
            # event that came back from the store.
            return
        self._places.forget(delivery)
        self.parking.left(delivery)
        if self.order.keys:
            self.order.left(delivery)
        if self._jobs is not None:
            self._jobs.left(delivery)
        if self.waiting.leave(delivery):
            self.entrance.has_room()
            self.starving.weigh()
        else:
            self.entrance.left(delivery)

    # What the store has

    def _parking_changed(self) -> None:
        self.entrance.look_again()
        self.starving.weigh()

    def _room_for_parked(self) -> int:
        if self._dispatcher.paused_since is not None:
            return 0
        room = self._queue - len(self.waiting)
        if self._dispatcher.gate.shut_since is None:
            return room
        return max(PROBERS - len(self.waiting), min(room, self.waiting.probers_wanted))
