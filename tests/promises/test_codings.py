"""A topic of compressed bodies: each becomes a job with what was in it, and what can't be opened is kept."""

from __future__ import annotations

import gzip
import json

import pytest

from bridge.pipeline.codings import MOST
from bridge.testing import until
from tests.support.world import World

PLAIN, BOMBS = 3, 5


@pytest.mark.prove
async def test_what_can_not_be_opened_holds_up_nothing_and_a_replay_goes_by_the_mended_route(
    world: World,
) -> None:
    """By a bridge that was killed meanwhile."""
    good = [json.dumps({"n": number}).encode() for number in range(40)]
    late = [json.dumps({"n": number}).encode() for number in range(100, 100 + PLAIN)]
    bomb = gzip.compress(bytes(200 * MOST))
    assert len(bomb) < MOST
    bodies = [gzip.compress(body) for body in good]
    routes = [{"from": "uploads", "to": "plants", "when": "data.n >= 0", "decode": "gzip"}]
    daemon = world.daemon(world.configuration(routes=routes))
    await world.bed.produce([*bodies[:20], *late, *[bomb] * BOMBS, *bodies[20:]])
    daemon.start()
    await until(lambda: world.oscar.ledger.total > 10, what="some jobs")
    daemon.kill()
    daemon.start()
    await until(lambda: world.oscar.ledger.total == len(good), what="the jobs of what can be opened")
    await until(lambda: len(daemon.kept()) == PLAIN + BOMBS, what="the dead letters")
    assert world.numbers() == dict.fromkeys(range(len(good)), 1)
    shown = daemon.command("dead-letters", "list", "--json")
    letters = [json.loads(line) for line in shown.stdout.splitlines()]
    assert {letter["cause"] for letter in letters} == {"undecodable"}
    assert len({letter["detail"] for letter in letters}) == 2
    assert await daemon.stop() == 0

    daemon.file.write_text(daemon.file.read_text().replace("decode: gzip", "decode: []"))
    daemon.start()
    await daemon.is_up()
    assert daemon.command("dead-letters", "replay", "--all").returncode == 0
    total = len(good) + PLAIN
    await until(lambda: world.oscar.ledger.total == total, what="the jobs of what was never compressed")
    await until(lambda: len(daemon.kept()) == BOMBS, what="the bombs, which are no JSON either")
    assert await daemon.stop() == 0
