"""Replay and discard: beside a daemon, without one, and by who may not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bridge.core.identity import invocation_name
from bridge.testing import until
from tests.support.daemon import Daemon
from tests.support.world import World


async def with_dead_letters(world: World, daemon: Daemon, count: int) -> list[dict[str, Any]]:
    """Make `count` dead letters with cause `http_413`, and end their cause."""
    world.oscar.settings.max_body_bytes = 60
    await world.produce_numbers(count, filling="x" * 100)
    if daemon.process is None:
        daemon.start()
    await until(lambda: len(daemon.said("dead letter", cause="http_413")) == count, what="the dead letters")
    world.oscar.settings.max_body_bytes = None
    return letters(daemon)


def letters(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.command("dead-letters", "list", "--json").stdout.splitlines()]


async def test_a_replay_beside_a_daemon_makes_the_jobs(world: World) -> None:
    daemon = world.daemon()
    await with_dead_letters(world, daemon, 20)
    dry = daemon.command("dead-letters", "replay", "--cause", "http_413", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "20 would be parked for their lanes\n")
    some = daemon.command("dead-letters", "replay", "--when", "data.n < 5")
    assert some.stdout == "5 parked for their lanes\n"
    await until(lambda: len(world.oscar.ledger.created) == 5, what="five jobs")
    rest = daemon.command("dead-letters", "replay", "--all")
    assert rest.stdout == "15 parked for their lanes\n"
    await world.all_jobs()
    world.assert_one_job_an_event()
    await until(lambda: not letters(daemon), what="none is left")


async def test_a_replay_as_new_makes_another_job(world: World) -> None:
    daemon = world.daemon()
    (letter,) = await with_dead_letters(world, daemon, 1)
    done = daemon.command("dead-letters", "replay", str(letter["number"]), "--as-new")
    assert done.returncode == 0, done.stderr
    name = invocation_name("uploads", f"{letter['event_id']}+1", "plants")
    await until(lambda: name in world.oscar.ledger.created, what="the new job")
    assert world.job_of(0) not in world.oscar.ledger.created


async def test_without_a_daemon_rows_are_marked_and_the_lane_invokes_later(world: World) -> None:
    daemon = world.daemon()
    await with_dead_letters(world, daemon, 10)
    assert await daemon.stop() == 0
    discarded = daemon.command("dead-letters", "discard", "--when", "data.n >= 8")
    assert discarded.stdout == "2 discarded\n"
    replayed = daemon.command("dead-letters", "replay", "--service", "plants")
    assert replayed.stdout == "8 parked for their lanes\n"
    assert not world.oscar.ledger.created
    daemon.start()
    await until(lambda: len(world.oscar.ledger.created) == 8, what="the jobs")
    world.assert_one_job_an_event(numbers=range(8))


async def test_a_letter_of_a_service_no_longer_configured_is_left_as_it_is(world: World) -> None:
    daemon = world.daemon()
    await with_dead_letters(world, daemon, 3)
    assert await daemon.stop() == 0
    renamed = world.configuration(
        services={"trees": {"service": "plants"}},
        routes=[{"from": "uploads", "to": "trees"}],
        state_dir=str(daemon.directory / "state"),
    )
    done = world.daemon(renamed).command("dead-letters", "replay", "--all")
    assert done.stdout.splitlines() == [
        "0 parked for their lanes",
        "3 left as they are: its service is not in the configuration any more: replay it --to another",
    ]


async def test_a_command_to_a_bridge_whose_store_is_in_trouble_fails_in_one_line(world: World) -> None:
    daemon = world.daemon()
    await with_dead_letters(world, daemon, 1)
    away = daemon.store.rename(daemon.store.with_name("away"))
    for arguments in (["replay", "--all"], ["discard", "--all"]):
        done = daemon.command("dead-letters", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"oscar-bridge: the bridge that runs: {daemon.store} can't be ")
    away.rename(daemon.store)
    assert daemon.command("dead-letters", "discard", "--all").stdout == "1 discarded\n"


async def test_a_command_that_says_nothing_of_which_is_refused(world: World) -> None:
    daemon = world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    for arguments in (["replay"], ["discard"], ["replay", "--all", "--cause", "route"]):
        done = daemon.command("dead-letters", *arguments)
        assert done.returncode == 2
        assert "--all" in done.stderr
    wrong = daemon.command("dead-letters", "replay", "--when", "dat.n == 1")
    assert wrong.returncode == 2
    assert "did you mean `data`" in wrong.stderr
    assert "Traceback" not in wrong.stderr


async def test_two_commands_at_once_do_each_row_once(world: World) -> None:
    daemon = world.daemon()
    await with_dead_letters(world, daemon, 50)
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "bridge", "dead-letters", "replay", "--all", "-c", str(daemon.file)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [one.communicate(timeout=30)[0] for one in both]
    assert sum(int(text.split()[0]) for text in said) == 50, said
    await world.all_jobs()
    world.assert_one_job_an_event()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that other users may enter: each run of pytest that begins closes its own to them."""
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_another_user_is_refused_with_a_clear_line(open_directory: Path, world: World) -> None:
    world.directory = open_directory
    daemon = world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    daemon.directory.chmod(0o755)
    daemon.file.chmod(0o644)
    for arguments in (["list"], ["replay", "--all"]):
        # As root first: the other user may not be allowed to read even the interpreter's own library.
        code = (
            "import contextlib, io, os, sys; from bridge.cli import main\n"
            "with contextlib.redirect_stdout(io.StringIO()): main(sys.argv[1:])\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "dead-letters", *arguments, "-c", str(daemon.file)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert "Permission denied" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert (daemon.directory / "state").stat().st_mode & 0o777 == 0o700
    assert daemon.process is not None
    assert daemon.process.poll() is None
