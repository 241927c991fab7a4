"""What the dCache source knows of complete listings: the phases, and what is on the agenda in each."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge.sources.dcache.agenda import Agenda, Directory, Listing
from bridge.sources.dcache.progress import TRANSITIONS, Phase, Progress
from bridge.sources.dcache.scope import Scope
from tests.sources.test_dcache_pure import config


@pytest.mark.parametrize("call", TRANSITIONS)
@pytest.mark.parametrize("phase", Phase)
def test_a_call_leads_where_the_table_says_and_nowhere_else(phase: Phase, call: str) -> None:
    progress = Progress(0)
    progress.phase = phase
    expected = TRANSITIONS[call].get(phase)
    if expected is None:
        with pytest.raises(KeyError):
            getattr(progress, call)()
        assert progress.phase is phase
    else:
        getattr(progress, call)()
        assert progress.phase is expected


def test_the_table_has_every_phase_and_allows_no_more_than_is_meant() -> None:
    every = set(Phase)
    assert {call: set(after) for call, after in TRANSITIONS.items()} == {
        "want": every,
        "begin": {Phase.WANTED},
        "end": {Phase.LISTING, Phase.OUTDATED},
        "replace_channel": every,
    }
    assert {phase for after in TRANSITIONS.values() for phase in after.values()} == every


def agenda(**more: object) -> tuple[Agenda, Progress]:
    progress = Progress(0)
    scope_config = config(paths=["/a", "/b"], **more)
    return Agenda(Scope(scope_config), progress, recursive=scope_config.recursive), progress


def test_a_directory_is_listed_once_for_what_was_asked_before_its_listing_began() -> None:
    made, _ = agenda()
    made.list_soon("/a/x/y")
    made.list_soon("/a/x")  # with all below it, so /a/x/y needs no listing of its own
    made.list_soon("/c")  # not watched
    first = made.next_directory()
    assert first is not None
    assert first.path == "/a/x"
    assert made.next_directory() is None
    made.list_soon("/a/x/y")  # again, and the listing of /a/x may have passed it
    second = made.next_directory()
    assert second is not None
    assert second.path == "/a/x/y"


def test_directories_that_events_were_about_go_before_those_found_below_others() -> None:
    made, _ = agenda()
    made.list_soon("/a")
    first = made.next_directory()
    assert first is not None
    made.add([Directory("/a/1", None, first.listing), Directory("/a/2", None, first.listing)])
    made.list_soon("/b")
    order = [found.path for found in iter(made.next_directory, None)]
    assert order == ["/b", "/a/2", "/a/1"]


async def test_who_waits_is_woken_by_whatever_there_is_to_do() -> None:
    made, _ = agenda()
    for ask in (made.list_all_soon, lambda: made.list_soon("/a")):
        waiting = asyncio.create_task(made.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        ask()
        await asyncio.wait_for(waiting, 5)


class Listings(RuleBasedStateMachine):
    """What is promised of complete listings, whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.agenda, self.progress = agenda()
        self.now = 0
        self.missed_at = 0
        """When events were missed last."""
        self.began_at = -1
        self.under_way: Listing | None = None
        self.known_since = -1
        """The beginning of the last complete listing that has ended on this channel; -1 before it."""

    @rule()
    def events_are_missed(self) -> None:
        self.now += 1
        self.missed_at = self.now
        self.agenda.list_all_soon()

    @rule(path=st.sampled_from(["/a", "/b/c", "/a/x/y"]))
    def a_directory_is_new(self, path: str) -> None:
        self.agenda.list_soon(path)

    @rule()
    def a_walker_begins(self) -> None:
        self.now += 1
        begun = self.agenda.begin_complete()
        if begun is not None:
            assert self.under_way is None, "one at a time"
            self.under_way, self.began_at = begun, self.now

    @rule()
    def a_walker_takes_a_directory(self) -> None:
        directory = self.agenda.next_directory()
        if directory is not None:
            assert not self.agenda.is_abandoned(directory.listing)
            self.agenda.end(directory.listing)

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def it_ends(self) -> None:
        assert self.under_way is not None
        self.now += 1
        self.agenda.end(self.under_way)
        self.agenda.end_complete(self.under_way)
        self.under_way, self.known_since = None, self.began_at

    @rule()
    def the_channel_is_replaced(self) -> None:
        self.now += 1
        before, self.under_way, self.known_since = self.under_way, None, -1
        self.agenda.replace_channel()
        assert self.agenda.is_empty
        if before is not None:
            assert self.agenda.is_abandoned(before)
            self.agenda.end_complete(before)  # as by a walker that hears of it later

    @invariant()
    def all_is_known_only_by_a_listing_that_began_after_the_last_loss(self) -> None:
        assert (self.progress.phase is Phase.KNOWN) <= (self.known_since > self.missed_at)

    @invariant()
    def what_is_missed_will_be_listed(self) -> None:
        is_due = self.progress.phase in (Phase.WANTED, Phase.OUTDATED)
        is_being_listed = self.under_way is not None and self.began_at > self.missed_at
        is_new = self.progress.phase is Phase.UNASKED
        assert is_due or is_being_listed or is_new or self.known_since > self.missed_at

    @invariant()
    def a_listing_under_way_is_known_to_be_so(self) -> None:
        assert (self.under_way is not None) == (self.progress.phase in (Phase.LISTING, Phase.OUTDATED))

    @invariant()
    def all_were_watched_once_a_listing_of_this_channel_has_ended(self) -> None:
        assert self.progress.has_watched_all == (self.known_since >= 0)


TestListings = Listings.TestCase
