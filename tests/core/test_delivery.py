"""A Delivery: settled once, and a parent with the worst of its children."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event

OUTCOMES = st.sampled_from(Outcome)


def event(name: str = "1") -> Event:
    return Event(id=name, source="uploads", type="org.example.put", data=b"{}")


def events(amount: int) -> list[Event]:
    return [event(str(number)) for number in range(amount)]


class Heard(list[tuple[Delivery, Outcome]]):
    """A watcher that records what it was told."""

    def __call__(self, delivery: Delivery, outcome: Outcome) -> None:
        self.append((delivery, outcome))


def test_outcomes_are_in_the_worst_of_order() -> None:
    names = [outcome.name for outcome in sorted(Outcome)]
    assert names == ["FILTERED", "ACCEPTED", "PARKED", "DEAD_LETTERED", "RELEASED"]


@given(OUTCOMES)
def test_a_settle_is_told_to_the_source(outcome: Outcome) -> None:
    heard = Heard()
    delivery = Delivery(event(), heard)
    delivery.settle(outcome)
    assert delivery.outcome is outcome
    assert heard == [(delivery, outcome)]


@given(st.lists(OUTCOMES, min_size=1))
def test_a_second_settle_is_ignored(outcomes: list[Outcome]) -> None:
    heard = Heard()
    delivery = Delivery(event(), heard)
    for outcome in outcomes:
        delivery.settle(outcome)
    assert delivery.outcome is outcomes[0]
    assert heard == [(delivery, outcomes[0])]


def test_every_watcher_is_called_once_in_order() -> None:
    order: list[str] = []
    delivery = Delivery(event(), lambda _delivery, _outcome: order.append("source"))
    delivery.watch(lambda _delivery, _outcome: order.append("intake"))
    delivery.watch(lambda _delivery, _outcome: order.append("lane"))
    delivery.settle(Outcome.ACCEPTED)
    delivery.settle(Outcome.RELEASED)
    assert order == ["source", "intake", "lane"]


def test_who_watches_late_is_told_at_once() -> None:
    delivery = Delivery(event())
    delivery.settle(Outcome.DEAD_LETTERED)
    heard = Heard()
    delivery.watch(heard)
    assert heard == [(delivery, Outcome.DEAD_LETTERED)]


def test_a_watcher_that_settles_again_changes_nothing() -> None:
    heard = Heard()
    delivery = Delivery(event(), lambda same, _outcome: same.settle(Outcome.RELEASED))
    delivery.watch(heard)
    delivery.settle(Outcome.ACCEPTED)
    assert heard == [(delivery, Outcome.ACCEPTED)]


def test_a_watcher_may_watch_again() -> None:
    heard = Heard()
    delivery = Delivery(event(), lambda same, _outcome: same.watch(heard))
    delivery.settle(Outcome.ACCEPTED)
    assert heard == [(delivery, Outcome.ACCEPTED)]


def test_an_empty_split_is_filtered() -> None:
    heard = Heard()
    delivery = Delivery(event(), heard)
    assert delivery.split([]) == []
    assert heard == [(delivery, Outcome.FILTERED)]


def test_children_have_their_own_events() -> None:
    parts = events(3)
    children = Delivery(event()).split(parts)
    assert [child.event for child in children] == parts


def test_a_delivery_is_split_only_once() -> None:
    delivery = Delivery(event())
    delivery.split(events(2))
    with pytest.raises(ValueError, match="split only once"):
        delivery.split(events(1))


@given(st.data())
def test_a_parent_settles_once_with_the_last_child_and_the_worst_outcome(data: st.DataObject) -> None:
    """In any order of completion, with second settles between."""
    outcomes = data.draw(st.lists(OUTCOMES, min_size=1, max_size=12))
    order = data.draw(st.permutations(range(len(outcomes))))
    heard = Heard()
    parent = Delivery(event(), heard)
    children = parent.split(events(len(outcomes)))
    for position, index in enumerate(order):
        assert parent.outcome is None
        assert heard == []
        children[index].settle(outcomes[index])
        again = data.draw(st.sampled_from(order[: position + 1]))
        children[again].settle(data.draw(OUTCOMES))
    assert heard == [(parent, max(outcomes))]
    assert [child.outcome for child in children] == outcomes


@given(st.data())
def test_a_tree_settles_with_the_worst_of_its_leaves(data: st.DataObject) -> None:
    parent = Delivery(event())
    branches = parent.split(events(data.draw(st.integers(1, 4))))
    leaves = [leaf for branch in branches for leaf in branch.split(events(data.draw(st.integers(1, 4))))]
    outcomes = []
    for leaf in data.draw(st.permutations(leaves)):
        assert parent.outcome is None
        outcomes.append(data.draw(OUTCOMES))
        leaf.settle(outcomes[-1])
    assert parent.outcome is max(outcomes)


@given(st.data())
def test_a_parent_settled_from_above_settles_its_open_children(data: st.DataObject) -> None:
    amount = data.draw(st.integers(1, 8))
    heard = Heard()
    parent = Delivery(event(), heard)
    children = parent.split(events(amount))
    told = Heard()
    for child in children:
        child.watch(told)
    finished = data.draw(st.lists(st.integers(0, amount - 1), unique=True, max_size=amount - 1))
    for index in finished:
        children[index].settle(Outcome.ACCEPTED)
    parent.settle(Outcome.RELEASED)
    for child in children:  # a lane that comes late with its answer
        child.settle(Outcome.ACCEPTED)
    assert heard == [(parent, Outcome.RELEASED)]
    assert sorted(children.index(child) for child, _ in told) == list(range(amount))
    for index, child in enumerate(children):
        assert child.outcome is (Outcome.ACCEPTED if index in finished else Outcome.RELEASED)


def test_settling_from_above_reaches_the_leaves_of_a_tree() -> None:
    parent = Delivery(event())
    branch, _other = parent.split(events(2))
    leaves = branch.split(events(3))
    parent.settle(Outcome.RELEASED)
    assert [leaf.outcome for leaf in leaves] == [Outcome.RELEASED] * 3


def test_a_delivery_split_after_it_settled_gives_settled_children() -> None:
    heard = Heard()
    parent = Delivery(event(), heard)
    parent.settle(Outcome.RELEASED)
    children = parent.split(events(2))
    assert [child.outcome for child in children] == [Outcome.RELEASED] * 2
    assert heard == [(parent, Outcome.RELEASED)]


def test_children_outlive_the_settling_of_the_first() -> None:
    """A watcher of one child that settles another, as a lane that stops does."""
    parent = Delivery(event())
    first, second = parent.split(events(2))
    first.watch(lambda _delivery, _outcome: second.settle(Outcome.RELEASED))
    first.settle(Outcome.ACCEPTED)
    assert parent.outcome is Outcome.RELEASED


def test_its_text_tells_source_event_and_state() -> None:
    delivery = Delivery(event("7"))
    assert repr(delivery) == "<Delivery uploads:7 unsettled>"
    delivery.settle(Outcome.PARKED)
    assert repr(delivery) == "<Delivery uploads:7 PARKED>"


def test_a_delivery_that_its_source_can_t_read_says_why() -> None:
    assert Delivery(event()).fault is None
    assert Delivery(event(), fault="not JSON").fault == "not JSON"
