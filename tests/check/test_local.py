"""Mistakes on this machine."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bridge.checkup.local import check_local
from bridge.control import Order, give
from bridge.settings import Settings
from bridge.store.directory import claim
from tests.check.findings import is_well, said
from tests.net.authority import Authority


def settings(state_dir: Path, **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "state_dir": str(state_dir),
            "http": {"port": 0},
            "clusters": {
                "main": {
                    "endpoint": "http://127.0.0.1:1",
                    "auth": {"type": "basic", "username": "oscar", "password": "sandbox"},
                }
            },
            "services": {"plants": {}},
            "sources": {
                "uploads": {
                    "type": "kafka",
                    "bootstrap_servers": "127.0.0.1:1",
                    "topics": ["t"],
                    "group_id": "g",
                }
            },
            "routes": [{"from": "uploads", "to": "plants"}],
            **more,
        }
    )


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


async def test_a_directory_that_can_be_made_is_well_and_not_made(tmp_path: Path) -> None:
    state_dir = tmp_path / "new" / "state"
    found = await check_local(settings(state_dir))
    assert is_well(found)
    said(found, "ok", "can be written")
    said(found, "note", "http.port is 0")
    assert not (tmp_path / "new").exists()


async def test_a_file_in_the_way_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    found = await check_local(settings(tmp_path / "state"))
    said(found, "problem", "is a file", about="store", remedy="name a directory")


async def test_what_is_paused_is_a_warning_and_another_limit_is_noted(tmp_path: Path) -> None:
    def order(do: Any, **more: Any) -> None:
        give(settings(tmp_path), Order(do=do, key="plants", kind="service", **more))

    order("limits", limits={"concurrency": "4"}, seconds=7190)
    found = await check_local(settings(tmp_path))
    assert is_well(found)
    said(found, "note", "service plants: concurrency is 4 in place of 16, for another 2 h")
    order("pause")
    found = await check_local(settings(tmp_path))
    said(found, "warning", "service plants is paused, until a person ends it", remedy="resume service plants")
    (tmp_path / "losses.json").write_text("?")
    said(await check_local(settings(tmp_path)), "problem", "losses.json can't be understood")
    (tmp_path / "overrides.json").write_text("?")
    said(await check_local(settings(tmp_path)), "problem", "overrides.json can't be understood")


@pytest.mark.parametrize("below", ["", "deeper/state"])
def test_a_directory_that_can_not_be_written_is_a_problem(below: str) -> None:
    """In a process of its own, which is nobody's: root may write anywhere."""
    script = (
        "import asyncio, os; from pathlib import Path; "
        "from tests.check.test_local import settings; from bridge.checkup.local import check_local; "
        "os.geteuid() or os.setuid(65534); "
        "[print(one) for one in asyncio.run(check_local(settings(Path({directory!r}))))]"
    )
    with TemporaryDirectory() as parent:
        Path(parent).chmod(0o500)
        done = subprocess.run(
            [sys.executable, "-c", script.format(directory=str(Path(parent, below)))],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    assert "can't be written" in done.stdout, done.stdout + done.stderr
    assert "permission denied" in done.stdout
    assert "have `state_dir` owned by" in done.stdout


async def test_a_network_file_system_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"36 35 98:0 / {tmp_path} rw - nfs4 server:/export rw\n")
    monkeypatch.setattr("bridge.store.directory._MOUNTS", mounts)
    found = await check_local(settings(tmp_path / "state"))
    said(found, "problem", "network file system (nfs4)", remedy="a disk of this machine")


async def test_a_disk_smaller_than_the_budget_is_a_warning(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    found = await check_local(settings(tmp_path, store={"max_bytes": free + 2**40}))
    said(found, "warning", "store.max_bytes", "free", remedy="lower `store.max_bytes`")


async def test_a_daemon_that_runs_is_told(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from bridge.store.directory import claim; "
        f"claim(Path({str(tmp_path)!r})); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        found = await check_local(settings(tmp_path))
        said(found, "note", f"process {holder.pid}", about="store")
    finally:
        holder.communicate(timeout=10)
    found = await check_local(settings(tmp_path))
    assert not any("process" in finding.message for finding in found)
    claim(tmp_path)  # looking took no lock


async def test_a_port_that_is_taken_is_a_problem(tmp_path: Path, taken: int) -> None:
    found = await check_local(settings(tmp_path, http={"port": taken}))
    said(found, "problem", f"port {taken} is taken", about="http", remedy="another `http.port`")
    found = await check_local(settings(tmp_path, http={"host": "192.0.2.1", "port": 9464}))
    said(found, "problem", "can't listen on 192.0.2.1", about="http", remedy="an address of this machine")


async def test_a_name_that_no_server_answers_for_holds_no_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def getaddrinfo(*arguments: Any) -> None:
        if not arguments[5] & socket.AI_NUMERICHOST:
            over.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr("bridge.checkup.local._ASK_SECONDS", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = await check_local(settings(tmp_path, http={"host": "slow.invalid", "port": 9464}))
    over.set()
    said(found, "problem", "slow.invalid port 9464: its name was not resolved", about="http")


async def test_a_token_that_anybody_can_read_or_guess_is_a_warning(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of twenty characters".replace(" ", "-"))
    token.chmod(0o600)
    pem = tmp_path / "http.pem"
    pem.write_bytes(Authority("ours").issue("bridge.example.org")[1])
    http = {"port": 0, "token_file": str(token)}
    assert is_well(await check_local(settings(tmp_path / "state", http=http)))
    open_to_all = {**http, "host": "0.0.0.0"}
    found = await check_local(settings(tmp_path / "state", http=open_to_all))
    said(found, "warning", "over 0.0.0.0 in the clear", about="http", remedy="http.tls")
    by_tls = {**open_to_all, "tls": {"cert_file": str(pem)}}
    assert is_well(await check_local(settings(tmp_path / "state", http=by_tls)))
    token.write_text("short")
    token.chmod(0o644)
    found = await check_local(settings(tmp_path / "state", http=http))
    said(found, "warning", "has 5 characters", about="http", remedy="openssl rand")
    said(found, "warning", "every user", about="http", remedy=f"chmod o-r {token}")
    before = settings(tmp_path / "state", http=http)
    token.unlink()
    said(await check_local(before), "problem", "http.token_file can't be used", about="http")
