"""The commands beside a running daemon, exit statuses, and stopping."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import httpx
import pytest

from bridge.cli import main
from bridge.sandbox.oscar import Fault
from bridge.testing import until
from tests.support.world import World

ROOT = Path(__file__).parents[2]
SANDBOX = [sys.executable, "-m", "bridge", "sandbox", "run", "-c", "config/sandbox.yaml"]
SANDBOX_ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "HOME": "/nonexistent"}


async def test_a_bad_configuration_exits_with_2_and_tells_every_mistake(world: World) -> None:
    configuration = world.configuration(routes=[{"from": "upload", "to": "plants", "whem": "true"}])
    daemon = world.daemon(configuration)
    for command in (["run"], ["check"], ["dead-letters", "list"]):
        done = daemon.command(*command)
        assert done.returncode == 2
        assert "did you mean `uploads`" in done.stderr
        assert "did you mean `when`" in done.stderr
        assert f"{daemon.file}:" in done.stderr
        assert "Traceback" not in done.stderr


async def test_a_second_daemon_of_one_state_dir_exits_with_2(world: World) -> None:
    daemon = world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    done = daemon.command("run")
    assert done.returncode == 2
    assert str(daemon.pid) in done.stderr
    assert "Traceback" not in done.stderr
    assert await daemon.stop() == 0


async def test_a_metric_says_what_readyz_says(world: World) -> None:
    away = world.source(bootstrap_servers="127.0.0.1:9")
    for source, ready in ((world.source(), True), (away, False)):
        daemon = world.daemon(world.configuration(sources={"uploads": source}))
        daemon.start()
        await (daemon.becomes_ready() if ready else daemon.is_up())
        told = await daemon.ready()
        assert told is not None
        assert told["ready"] is ready
        assert await daemon.metric("bridge_ready") == ready
        assert await daemon.stop() == 0


async def test_a_taken_port_exits_with_1_in_one_line(world: World) -> None:
    first = world.daemon()
    first.start()
    await first.becomes_ready()
    second = world.daemon(world.configuration(http={"port": first.port}))
    done = second.command("run")
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1 port {first.port}" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_bridge_whose_store_breaks_tells_it_in_a_line_and_exits_with_1(world: World) -> None:
    prelude = """
from bridge.store.writer import Writer
first = Writer._keep
def keep(self, group):
    raise OSError(5, "a defect")
Writer._keep = keep
"""
    daemon = world.daemon(prelude=prelude)
    world.oscar.settings.max_body_bytes = 60  # so that there is a dead letter to keep
    await world.produce_numbers(3, filling="x" * 100)
    daemon.start()
    assert daemon.process is not None
    process = daemon.process
    await until(lambda: process.poll() is not None, what="its end")
    assert process.returncode == 1
    said = daemon.log.read_text().splitlines()
    assert any("the store is broken by a defect: the bridge must end" in line for line in said)
    assert any(line.endswith("is broken by a defect: OSError: [Errno 5] a defect") for line in said)


async def test_check_says_what_it_read(world: World) -> None:
    done = world.daemon().command("check", "--offline")
    assert done.returncode == 0
    assert "1 cluster, 1 service, 1 source, 1 route: can be used" in done.stdout


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with nothing else in the environment."""
    return subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ.get("PATH", ""), **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dead-letters", "list", "--limit", "-1"], "--limit: expected a number of at least 1, found '-1'"),
        (["dead-letters", "replay", "--older-than", "7x"], "--older-than: expected seconds or a duration"),
        (["dead-letters", "replay"], "say which dead letters are meant, by number or by an option; or --all"),
        (["dead-letters", "discard", "--all", "7"], "--all: means every dead letter: leave it out"),
        (["dead-letters", "replay", "--when", "data.x >"], "--when: not a CEL expression: it ends too early"),
        (["check", "--source", "uploads"], "--event: is missing"),
        (["check", "--event", "-"], "--source: is missing; there are uploads"),
        (
            ["check", "--event", "-", "--source", "upload"],
            "`upload` is not in `sources`; did you mean `uploads`",
        ),
        (["check", "--event", "-", "--attribute", "topic"], "expected NAME=VALUE, found 'topic'"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_what_is_wrong(
    world: World, arguments: list[str], told: str
) -> None:
    done = world.daemon().command(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_an_event_file_that_is_missing_is_told_in_plain_words(world: World, tmp_path: Path) -> None:
    done = world.daemon().command("check", "--event", str(tmp_path / "none"), "--source", "uploads")
    assert (done.returncode, done.stderr) == (
        1,
        f"oscar-bridge: {tmp_path}/none: No such file or directory\n",
    )


def test_a_command_on_dead_letters_makes_no_store(world: World) -> None:
    daemon = world.daemon()
    for arguments in (["list"], ["show", "1"], ["replay", "--all"], ["discard", "1"]):
        done = daemon.command("dead-letters", *arguments)
        assert done.returncode == 1
        assert done.stderr == (
            f"oscar-bridge: there is no store in {daemon.store.parent}: "
            "is state_dir right, and has the bridge run?\n"
        )
    assert not daemon.store.parent.exists()


async def test_why_says_that_nothing_was_kept_that_could_tell(world: World) -> None:
    daemon = world.daemon()
    done = await asyncio.to_thread(daemon.command, "why", "uploads/0/1@2")  # it asks this process' broker
    assert done.returncode == 1
    assert done.stdout.startswith(
        "never seen, as far as is known: nothing of that name is kept, and there is no journal\n"
    )
    assert done.stderr == (
        f"oscar-bridge: what is in hand is not known: no bridge runs in {daemon.store.parent}\n"
    )


async def test_a_number_that_is_no_dead_letter_is_told(world: World) -> None:
    daemon = world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    done = daemon.command("dead-letters", "discard", "98", "99", "99")
    assert (done.returncode, done.stdout) == (1, "0 discarded\n")
    assert done.stderr == ("oscar-bridge: 2 of the 2 numbers given: no such dead letter among those chosen\n")
    assert daemon.command("dead-letters", "list", "--service", "plants").stdout == (
        "no dead letter is of that service and cause\n"
    )
    assert daemon.command("dead-letters", "discard", "--all").returncode == 0
    assert await daemon.stop() == 0


def test_a_terminal_without_utf_8_is_told_all_the_same(world: World) -> None:
    daemon = world.daemon()
    done = command(
        "check",
        "--event",
        "/dev/null",
        "--source",
        "uploads",
        "-c",
        str(daemon.file),
        PYTHONIOENCODING="ascii",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "every event \\u2192 plants: yes, to plants" in done.stdout


def test_nobody_reading_the_help_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "bridge", "--help"],
            stdout=nobody,
            stderr=PIPE,
            # Unbuffered, argparse sees the failure first, and from Python 3.11.7 on keeps it to itself.
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


async def test_dead_letters_are_listed_and_shown_beside_a_running_daemon(world: World) -> None:
    daemon = world.daemon(
        world.configuration(routes=[{"from": "uploads", "when": "data.n > 0", "to": "plants"}])
    )
    daemon.start()
    ids = await world.bed.produce(
        [b"\x1b[31mnot JSON", b'{"n": "text"}', b'{"n": 1}', b'{"m": 1}', b'{"n": 0}']
    )
    await until(lambda: len(daemon.said("dead letter")) == 2, what="two dead letters")
    listed = [
        json.loads(line) for line in daemon.command("dead-letters", "list", "--json").stdout.splitlines()
    ]
    assert {letter["event_id"] for letter in listed} == set(ids[:2])
    number = next(letter["number"] for letter in listed if letter["event_id"] == ids[0])
    shown = daemon.command("dead-letters", "show", str(number))
    assert "data is not JSON but text" in shown.stdout
    assert "\x1b" not in shown.stdout, "what others wrote does not reach the terminal"
    whole = json.loads(daemon.command("dead-letters", "show", str(number), "--json").stdout)
    assert whole["data_encoding"] == "base64"
    assert whole["attributes"]["topic"] == world.bed.name
    missing = daemon.command("dead-letters", "show", "99")
    assert (missing.returncode, missing.stderr) == (1, "oscar-bridge: there is no dead letter 99\n")
    await until(lambda: len(world.oscar.ledger.created) == 1, what="the job of the good one")
    for reason in ("missing_key", "no_match"):
        assert await daemon.metric("bridge_events_filtered_total", source="uploads", reason=reason) == 1
    assert await daemon.stop() == 0
    for cause in ("route", "not_json"):
        assert len(daemon.command("dead-letters", "list", "--cause", cause).stdout.splitlines()) == 2


async def test_stopping_drains_what_is_in_the_lanes_and_commits_it(world: World) -> None:
    world.oscar.faults.set(Fault(delay_seconds=0.2))
    daemon = world.daemon(
        world.configuration(
            services={"plants": {"limits": {"concurrency": 4}}},
            sources={"uploads": world.source(max_in_flight=20)},
        )
    )
    await world.produce_numbers(100)
    daemon.start()
    await until(lambda: world.oscar.ledger.requests >= 4, what="work has begun")
    assert await daemon.stop() == 0
    jobs = len(world.oscar.ledger.created)
    assert 20 <= jobs < 100, "all that was in hand, and nothing new"
    assert await world.bed.committed() == jobs
    assert not daemon.said("events given back upstream")


async def test_a_second_signal_gives_back_at_once_and_nothing_is_lost(world: World) -> None:
    world.oscar.faults.set(Fault(delay_seconds=5))
    daemon = world.daemon()
    await world.produce_numbers(50)
    daemon.start()
    await until(lambda: world.oscar.ledger.requests >= 4, what="work has begun")
    first_signal = "stopping: lanes drain first; once more to stop now"
    os.kill(daemon.pid, signal.SIGTERM)
    await until(lambda: daemon.said(first_signal), what="the first signal is taken")
    assert await daemon.stop(seconds=4) == 0
    (line,) = daemon.said("events given back upstream")
    assert line["events"] > 0
    world.oscar.faults.clear()
    daemon.start()
    await world.all_jobs()
    await world.bed.leaves(0)
    world.assert_one_job_an_event()


def test_make_run_once_shows_events_of_each_source_becoming_jobs() -> None:
    """The README's first command, without its virtual environment."""
    done = subprocess.run(
        [*SANDBOX, "--once"],
        cwd=ROOT,
        env=SANDBOX_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for leaf in ("leaf-1.nc", "leaf-2.nc", "leaf-3.nc"):
        assert f"classified {leaf}:" in done.stdout
    assert "segmented scans%2Fleaf+4.nc" in done.stdout
    for leaf, size in (("leaf-5.csv", 37), ("greenhouse 2/leaf-6.csv", 54)):
        assert f"fetched {leaf}: {size} bytes, first line 'species,millimetres'" in done.stdout
    assert done.stdout.count(" Succeeded") == 6


def test_a_sandbox_without_its_servers_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `pip install .`, which brings what the bridge needs and no more."""
    monkeypatch.setitem(sys.modules, "moto", None)
    assert main(["sandbox", "run", "-c", "config/sandbox.yaml"]) == 1
    assert capsys.readouterr().err == (
        "the sandbox needs servers that the bridge does not: pip install 'moto[server]'\n"
    )


async def test_what_a_person_puts_into_the_sandbox_by_curl_becomes_a_job_too() -> None:
    sandbox = await asyncio.create_subprocess_exec(
        *SANDBOX, cwd=ROOT, env=SANDBOX_ENVIRONMENT, stdout=PIPE, stderr=STDOUT
    )
    try:
        curl = shlex.split(await _line_with(sandbox, "curl "))
        assert curl[:4] == ["curl", "-u", "bridge:bridge", "-T"], curl
        await _line_with(sandbox, "Ctrl-C ends it")
        async with httpx.AsyncClient(auth=("bridge", "bridge")) as http:
            assert (await http.put(curl[-1], content=b"mine\n")).status_code == 201
        await _line_with(sandbox, "fetched leaf.nc: 5 bytes, first line 'mine'")
        sandbox.send_signal(signal.SIGINT)
        rest, _ = await asyncio.wait_for(sandbox.communicate(), 30)
        assert sandbox.returncode == 0, rest.decode()
    finally:
        if sandbox.returncode is None:
            sandbox.send_signal(signal.SIGTERM)
            await sandbox.communicate()


async def _line_with(process: asyncio.subprocess.Process, text: str) -> str:
    """Read on to the line with `text`."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while line := (await process.stdout.readline()).decode():
            if text in line:
                return line
    raise AssertionError(f"it ended before it said {text!r}")
