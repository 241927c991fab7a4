"""/livez, /readyz and /metrics, asked over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import ValidationError

from bridge import web
from bridge.net.loop import Loop
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from bridge.web import HttpConfig, Problem
from tests.web.holding import half_a_request, is_open

ANY_PORT = HttpConfig(port=0)


async def nothing(_command: Mapping[str, Any]) -> Mapping[str, Any]:
    raise AssertionError("without a token nobody gives a command")


serve = partial(web.serve, command=nothing)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


def ready() -> list[Problem]:
    return []


async def test_livez_is_ok_while_the_loop_turns(http: aiohttp.ClientSession) -> None:
    async with serve(ANY_PORT, CollectorRegistry(), ready) as url, http.get(f"{url}/livez") as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")


async def test_readyz_follows_the_problems(http: aiohttp.ClientSession) -> None:
    problems: list[Problem] = []
    async with serve(ANY_PORT, CollectorRegistry(), lambda: problems) as url:
        async with http.get(f"{url}/readyz") as answer:
            assert (answer.status, await answer.json()) == (200, {"ready": True, "problems": []})
        problems.append(Problem("service plants", "404: no such service “plants”"))
        async with http.get(f"{url}/readyz") as answer:
            assert answer.status == 503
            assert await answer.json() == {
                "ready": False,
                "problems": [{"part": "service plants", "reason": "404: no such service “plants”"}],
            }


async def test_metrics_parse_and_have_the_process_beside_the_bridge(http: aiohttp.ClientSession) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.source("uploads").received.inc(3)
    async with serve(ANY_PORT, metrics.registry, ready) as url, http.get(f"{url}/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = {family.name: family for family in parse_text(await answer.text())}
    (sample,) = (
        sample
        for sample in families["bridge_events_received"].samples
        if sample.name == "bridge_events_received_total"
    )
    assert (sample.labels, sample.value) == ({"source": "uploads"}, 3)
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info"} <= families.keys()


async def test_metrics_are_openmetrics_for_who_asks(http: aiohttp.ClientSession) -> None:
    wanted = {"Accept": "application/openmetrics-text; version=1.0.0; charset=utf-8"}
    metrics = Metrics(CollectorRegistry())
    metrics.source("uploads").received.inc()
    async with (
        serve(ANY_PORT, metrics.registry, ready) as url,
        http.get(f"{url}/metrics", headers=wanted) as answer,
    ):
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = await answer.text()
    assert text.endswith("# EOF\n")
    names = {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call] # theirs
    assert "bridge_events_received" in names


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_head_is_answered_without_a_body(http: aiohttp.ClientSession, path: str) -> None:
    async with serve(ANY_PORT, CollectorRegistry(), ready) as url, http.head(url + path) as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_an_unknown_path_is_a_small_json_answer(http: aiohttp.ClientSession) -> None:
    async with serve(ANY_PORT, CollectorRegistry(), ready) as url, http.get(f"{url}/nothing") as answer:
        assert answer.status == 404
        assert "http.token_file" in (await answer.json())["error"]


async def test_another_method_is_told_which_are_allowed(http: aiohttp.ClientSession) -> None:
    async with serve(ANY_PORT, CollectorRegistry(), ready) as url, http.post(f"{url}/livez") as answer:
        assert (answer.status, await answer.json()) == (405, {"error": "Method Not Allowed"})
        assert answer.headers["Allow"] == "GET,HEAD"


async def test_an_address_in_use_fails_the_start_and_is_told() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        registry = CollectorRegistry()
        with pytest.raises(OSError, match=rf"http: can't listen on 127\.0\.0\.1 port {port}: .*in use"):
            async with serve(HttpConfig(port=port), registry, ready):
                pass
        assert list(registry.collect()) == []


async def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(OSError, match=r"http: can't listen on 192\.0\.2\.1 port 0"):
        async with serve(HttpConfig(host="192.0.2.1", port=0), CollectorRegistry(), ready):
            pass


async def test_one_registry_can_be_served_again(http: aiohttp.ClientSession) -> None:
    registry = CollectorRegistry()
    for _ in range(2):
        async with serve(ANY_PORT, registry, ready) as url, http.get(f"{url}/metrics") as answer:
            assert answer.status == 200


async def test_an_idle_keep_alive_connection_does_not_hold_the_stop(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(5):
        async with serve(ANY_PORT, CollectorRegistry(), ready) as url, http.get(f"{url}/livez") as answer:
            await answer.read()


loops = pytest.mark.parametrize("loop", [Loop, asyncio.SelectorEventLoop])
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(loop: LoopFactory, main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(main, 60))


@loops
def test_who_opens_connections_and_asks_nothing_takes_no_descriptors_from_the_bridge(
    monkeypatch: pytest.MonkeyPatch, loop: LoopFactory
) -> None:
    monkeypatch.setattr("bridge.web.connections.MOST_CONNECTIONS", 8)

    async def main() -> None:
        async with serve(ANY_PORT, CollectorRegistry(), ready) as url, aiohttp.ClientSession() as http:
            with ExitStack() as stack:
                callers = []
                for _ in range(100):
                    callers.append(half_a_request(stack, url))
                    await asyncio.sleep(0)
                async with http.get(f"{url}/livez") as answer:
                    assert answer.status == 200
                await until(lambda: sum(map(is_open, callers)) <= 8)
                assert is_open(callers[-1]), "the oldest goes first"

    run(loop, main())


@loops
def test_half_a_request_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, loop: LoopFactory
) -> None:
    monkeypatch.setattr("bridge.web.connections.REQUEST_SECONDS", 0.1)

    async def main() -> None:
        async with serve(ANY_PORT, CollectorRegistry(), ready) as url:
            with ExitStack() as stack:
                caller = half_a_request(stack, url)
                await until(lambda: not is_open(caller))

    run(loop, main())


async def test_a_connection_has_one_answer(http: aiohttp.ClientSession) -> None:
    async with serve(ANY_PORT, CollectorRegistry(), ready) as url:
        for path, status in (("/livez", 200), ("/nothing", 404)):
            async with http.get(url + path) as answer:
                assert (answer.status, answer.headers["Connection"]) == (status, "close")


async def test_nothing_is_logged_for_a_request_or_for_what_is_none(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(ANY_PORT, CollectorRegistry(), ready) as url:
        async with http.get(f"{url}/livez"):
            pass
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert [record for record in caplog.records if record.name.startswith("aiohttp")] == []


@pytest.mark.parametrize(
    "wrong", [{"port": 65536}, {"port": -1}, {"host": ""}, {"prot": 1}, {"names": ["a:1"]}, {"names": [""]}]
)
def test_a_wrong_address_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        HttpConfig.model_validate(wrong)
