from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.core.delivery import Outcome
from bridge.core.event import Event
from bridge.sources.sqs import held
from bridge.sources.sqs.held import Groups, Held


def message(number: int, group: str | None) -> Held:
    event = Event(id=str(number), source="s", type="t", data=b"")
    return Held(event, f"receipt-{number}", group, lambda _held, _outcome: None)


@given(
    st.lists(st.sampled_from("abc"), max_size=20),
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=60),
)
def test_one_of_a_group_is_out_at_a_time_and_in_order(
    arrivals: list[str], settling: list[tuple[int, bool]]
) -> None:
    groups = Groups()
    messages = [message(number, group) for number, group in enumerate(arrivals)]
    out = [each for each in messages if groups.enter(each)]
    gone: list[Held] = []
    given_back: list[Held] = []
    for choice, is_released in settling:
        if not out:
            break
        assert groups.waiting == len(messages) - len(out) - len(gone) - len(given_back)
        held_out = out.pop(choice % len(out))
        (given_back if is_released else gone).append(held_out)
        following, back = groups.leave(held_out, Outcome.RELEASED if is_released else Outcome.ACCEPTED)
        given_back += back
        assert not (is_released and following)
        if following is not None:
            assert following.group == held_out.group
            out.append(following)
        assert len({each.group for each in out}) == len(out)
    for group in "abc":
        done = [int(each.id) for each in gone if each.group == group]
        back_again = [int(each.id) for each in given_back if each.group == group]
        assert done == sorted(done)
        assert not done or not back_again or max(done) < min(back_again)
    for each in out:
        following, back = groups.leave(each, Outcome.RELEASED)
        assert following is None
        given_back += back
    assert groups.waiting == 0
    assert len(gone) + len(given_back) + len(out) == len(messages)


def test_messages_without_a_group_never_wait() -> None:
    groups = Groups()
    first, second = message(0, None), message(1, None)
    assert groups.enter(first)
    assert groups.enter(second)
    assert groups.leave(first, Outcome.RELEASED) == (None, [])
    assert groups.waiting == 0


def test_a_follower_given_back_takes_only_those_behind_it() -> None:
    groups = Groups()
    messages = [message(number, "a") for number in range(4)]
    for each in messages:
        groups.enter(each)
    assert groups.leave(messages[2], Outcome.RELEASED) == (None, [messages[3]])
    assert groups.leave(messages[0], Outcome.ACCEPTED) == (messages[1], [])


@given(st.integers(1, 43_200))
def test_no_message_is_held_longer_than_sqs_allows(visibility: int) -> None:
    each = message(0, None)
    now = 1000.0
    each.is_received(now, visibility)
    while each.due < each.gives_way:
        now = each.due
        each.is_kept(now, visibility)
        assert now + visibility <= 1000.0 + held.LONGEST_HOLD
    assert each.gives_way < 1000.0 + 43_200
    assert each.gives_way > 1000.0 + min(held.LONGEST_HOLD - visibility, visibility)
