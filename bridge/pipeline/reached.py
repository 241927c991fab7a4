"""The lanes that a source's routes lead to, and how much of the source each of them has."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from bridge.core.delivery import Delivery, Outcome
from bridge.pipeline.intake import Intake
from bridge.pipeline.lane import Lane
from bridge.pipeline.merging import Place


class Reached:
    """Puts events into the lanes of one source, of which none may take all slots while another starves."""

    def __init__(self, lanes: Mapping[str, Lane], intake: Intake) -> None:
        """Put what `intake` has given slots into `lanes`."""
        self._lanes = lanes
        self._intake = intake
        self._share = max(1, intake.most // max(1, len(lanes)))
        """How many of the source's slots one lane may take while another of its lanes starves."""
        self._taken = dict.fromkeys(lanes, 0)
        self._leaves = {key: partial(self._left, key) for key in lanes}
        self._starving: set[str] = set()
        self._putting = 0
        """Events on their way into a lane: one of the source's, and one of those routed again."""
        if len(lanes) > 1:  # holding the source back for a lane that is alone starves no other
            # More than fits into each of them would be got only by parking what is of the others.
            enough = min(self._share, *(lane.queue for lane in lanes.values())) // 4
            for key, lane in lanes.items():
                lane.when_starving(partial(self._starves, key), enough)

    def take(self, delivery: Delivery, key: str, order_key: int | None) -> bool:
        """Put `delivery` into a lane if it need not wait; return whether it is in. If not, `put` follows."""
        if len(self._lanes) > 1:
            self._taken[key] += 1
            delivery.watch(self._leaves[key])
            if self._must_make_way(key):
                return False
        return order_key is None and self._lanes[key].take_all((delivery,)) > 0

    async def put(self, delivery: Delivery, key: str, order_key: Place | int | None) -> None:
        """Put `delivery` into its lane, which it has not entered, as soon as it may."""
        assert not isinstance(order_key, Place)  # noqa: S101 - a window takes what is put into it
        lane = self._lanes[key]
        if len(self._lanes) == 1:
            await lane.put(delivery, order_key=order_key)
            return
        self._putting += 1
        try:
            await lane.put(
                delivery,
                partial(self._another_starves, key),
                at_once=self._must_make_way(key),
                order_key=order_key,
            )
        finally:
            self._putting -= 1

    def make_way(self) -> None:
        """Have the lanes that hold more than their share park it, if another starves meanwhile.

        Called when the source has no free slot.
        """
        for key, lane in self._lanes.items():
            if self._another_starves(key):
                lane.make_way(for_all=self._must_make_way(key))

    def _starves(self, key: str, starving: bool) -> None:
        """Hear that a lane begins to starve, or ceases: it may be that another holds the source."""
        if not starving:
            self._starving.discard(key)
            return
        self._starving.add(key)
        if self._putting or self._intake.full:
            self.make_way()

    def _another_starves(self, key: str) -> bool:
        return len(self._starving) > (key in self._starving)

    def _must_make_way(self, key: str) -> bool:
        """Tell whether a lane has more than its share of a source that is held, while another starves.

        Where the shares are so small that both starve, by what each is used to, it is the one that has next
        to nothing.
        """
        if not self._starving or self._taken[key] <= self._share or not self._intake.full:
            return False
        if key not in self._starving:
            return True
        return any(4 * self._taken[other] < self._share for other in self._starving)

    def _left(self, lane: str, _delivery: Delivery, _outcome: Outcome) -> None:
        self._taken[lane] -= 1
