"""Many calls at once at a server that fails in every way: no answer is another's, no job is made twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from bridge.core.ports import Verdict
from bridge.destinations.oscar.answers import judge
from bridge.destinations.oscar.exchange import Head, NoReply, Reply
from bridge.destinations.oscar.wire import Wire
from tests.destinations.wires import CLIENTS, LOST, NOT_SENT, Caller, Outcome, calling, contexts, until
from tests.servers.nasty import (
    Connection,
    Script,
    close,
    cut,
    drip,
    play,
    reset,
    served,
    turns,
    until_gone,
)

H = b"HTTP/1.1 "
CONTINUE = H + b"100 Continue\r\n\r\n"
OTHER = H + b"200 OK\r\nContent-Length: 5\r\n\r\nother"
OK = H + b"200 OK\r\nContent-Length: 4\r\n\r\nNAME"

ENDINGS: dict[str, tuple[Script, bool]] = {
    "a length": ([OK], True),
    "chunks": ([H + b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"4\r\nNAME\r\n0\r\n\r\n"], True),
    "100 before it": ([CONTINUE, OK], True),
    "byte by byte": ([drip(OK)], True),
    "close": ([OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")], True),
    "no length": ([H + b"200 OK\r\n\r\nNAME", close], True),
    "closed behind it": ([OK, close], True),
    "reset behind it": ([OK, reset], True),
    "another one with it": ([OK + OTHER], True),
    "no answer": ([close], False),
    "reset": ([reset], False),
    "cut in the status": ([H + b"20", close], False),
    "cut after 100": ([CONTINUE, cut], False),
    "garbage": ([b"garbage\r\n\r\n"], False),
    "never": ([until_gone], False),
}
"""What a server does with a request, and whether its answer is all there."""


class Call(NamedTuple):
    """One call of many."""

    ending: str
    begins: int
    """After so many turns of the loop."""
    waits: int
    """So many turns the server takes its time."""
    gives_up: int | None
    """After so many turns the caller does."""


CALLS = st.builds(
    Call,
    st.sampled_from(list(ENDINGS)),
    st.integers(0, 30),
    st.integers(0, 8),
    st.none() | st.integers(0, 40),
)


@pytest.mark.parametrize("client", CLIENTS)
@given(calls=st.lists(CALLS, min_size=2, max_size=12))
@settings(max_examples=25)
async def test_no_answer_is_another_calls(client: str, calls: list[Call]) -> None:
    answered: set[bytes] = set()

    async def answer(connection: Connection) -> None:
        await connection.read_head()
        await connection.read_body()
        call = calls[int(connection.name)]
        script, whole = ENDINGS[call.ending]
        if whole:
            answered.add(connection.name)
        await play(connection, [turns(call.waits), *script])

    async def make(caller: Caller, number: int, call: Call) -> Outcome | None:
        await let_turn(call.begins)
        task = asyncio.create_task(caller.ask(f"{number:04}"))
        if call.gives_up is not None or call.ending == "never":
            await let_turn(200 if call.gives_up is None else call.gives_up)
            task.cancel()
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    async with served(then=answer) as server, calling(client, server.url) as caller:
        came = await asyncio.gather(*(make(caller, number, call) for number, call in enumerate(calls)))
        heard = {job for _, job in server.heard}
        for number, outcome in enumerate(came):
            job = b"%04d" % number
            if isinstance(outcome, tuple):
                assert outcome == (200, job)
            elif outcome is NOT_SENT:
                assert job not in heard
            elif outcome is LOST:
                assert job not in answered


async def let_turn(loop_turns: int) -> None:
    for _ in range(loop_turns):
        await asyncio.sleep(0)


# --- Each job once ----------------------------------------------------------------------------------------

MADE, UNMADE = True, False
FAULTS: list[tuple[int, bool, Callable[[bytes], Script]]] = [
    # Its weight; whether the job is made; what is done with the answer.
    (60, MADE, lambda answer: [answer]),
    (5, MADE, lambda answer: [turns(20), answer]),
    (1, MADE, lambda answer: [drip(answer)]),
    (3, MADE, lambda answer: [CONTINUE + answer]),
    (2, MADE, lambda answer: [answer, close]),
    (2, MADE, lambda answer: [answer, reset]),
    (1, MADE, lambda answer: [answer + OTHER]),
    (3, MADE, lambda _: [close]),
    (3, MADE, lambda _: [reset]),
    (1, MADE, lambda answer: [answer[:10], cut]),
    (1, MADE, lambda answer: [answer[:30], reset]),
    (1, MADE, lambda answer: [answer[:-9], close]),
    (1, MADE, lambda _: [b"garbage\r\n\r\n"]),
    (1, MADE, lambda _: [until_gone]),
    (3, UNMADE, lambda answer: [answer]),
    (2, UNMADE, lambda answer: [answer, close]),
    (1, UNMADE, lambda answer: [answer[:-9], cut]),
    (2, UNMADE, lambda _: [close]),
    (2, UNMADE, lambda _: [reset]),
    (1, UNMADE, lambda _: [CONTINUE, until_gone]),
    (1, UNMADE, lambda _: [b"\x15\x03\x01\x00\x02\x02\x50"]),
]


class Oscar:
    """Makes a job of each name once, as OSCAR does; of its answers a good part is not what it should be."""

    def __init__(self) -> None:
        self.jobs: set[bytes] = set()
        self.attempts = 0

    async def answer(self, connection: Connection) -> None:
        await connection.read_head()
        _, made, script = random.choices(FAULTS, [weight for weight, _, _ in FAULTS])[0]
        if random.random() < 0.01:
            await reset(connection)  # unread
        await connection.read_body()
        self.attempts += 1
        status, text = 503, b"busy"
        if made:
            status, text = 201, b""
            if connection.name in self.jobs:
                status, text = 500, b'jobs.batch "%s" already exists' % connection.name
            self.jobs.add(connection.name)
        # The reason tells the attempt that is answered, where it is given on: of a 201 the job itself tells.
        answer = H + b"%d %s\r\nX-Padding: 0123456789\r\nContent-Length: %d\r\n\r\n%s"
        await play(connection, script(answer % (status, connection.body, len(text), text)))


@pytest.mark.parametrize(
    ("transport", "attempts"),
    [
        ("plain", 1_000),
        ("TLS", 200),
        pytest.param("plain", 50_000, marks=pytest.mark.prove),
        pytest.param("TLS", 10_000, marks=pytest.mark.prove),
    ],
)
async def test_through_every_fault_each_job_is_made_once_and_no_answer_is_anothers(
    transport: str, attempts: int
) -> None:
    oscar = Oscar()
    names, numbers = (f"plants-{number}" for number in count()), count()
    accepted: dict[str, Verdict] = {}
    begun: set[str] = set()

    async def attempt(name: str, client: Wire, head: Head) -> Verdict:
        number = f"attempt-{next(numbers)}"
        came: Reply | NoReply
        try:
            came = await client.exchange(head, number.encode(), 0.5, job=name)
        except NoReply as error:
            came = error
        else:
            assert number.startswith(came.reason), "the answer to another attempt"
        return judge("job", name, came, idempotent=False, token="", path="/job/plants").verdict

    async def lane(client: Wire, head: Head) -> None:
        while oscar.attempts < attempts:
            name = next(names)
            begun.add(name)
            verdict = await attempt(name, client, head)
            while verdict not in (Verdict.ACCEPTED, Verdict.DUPLICATE):
                # FAILED: "already exists", cut so that nobody can read it
                assert verdict in (Verdict.UNAVAILABLE, Verdict.CAPACITY, Verdict.FAILED)
                verdict = await attempt(name, client, head)
            assert name.encode() in oscar.jobs, "accepted, and there is no job"
            accepted[name] = verdict

    server_tls, client_tls = contexts() if transport == "TLS" else (None, None)
    async with served(then=oscar.answer, tls=server_tls) as server:
        client, head = Wire(URL(server.url), client_tls), Head(URL(server.url) / "job" / "plants", {})
        async with asyncio.TaskGroup() as lanes:
            for _ in range(32):
                lanes.create_task(lane(client, head))
        await client.close()
        await until(lambda: not server.open)
    assert oscar.jobs == {name.encode() for name in begun} == {name.encode() for name in accepted}
    assert oscar.attempts >= attempts
    assert set(accepted.values()) == {Verdict.ACCEPTED, Verdict.DUPLICATE}
