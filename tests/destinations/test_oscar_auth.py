"""Credentials: where they come from, how they are renewed, how few requests that takes, and who sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bridge import credentials as auth_module
from bridge.core.ports import Answer, Verdict
from bridge.credentials import Bearer, Grant, NoCredentialError, json_object, refused
from bridge.destinations.oscar.client import OscarService
from bridge.telemetry.metrics import Metrics
from tests.destinations.fake_oscar import PASSWORD, FakeOscar, always, event, serve, service, token


async def invoke_at_once(plants: OscarService, count: int = 16) -> list[Verdict]:
    answers = await asyncio.gather(*(plants.prepare(event(number)).attempt() for number in range(count)))
    return [answer.verdict for answer in answers]


# --- Service tokens read from the cluster -----------------------------------------------------------------


async def test_workers_share_one_fetch_and_one_more_after_the_token_rotates() -> None:
    async with FakeOscar().serve() as oscar, service(oscar.url) as plants:
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        assert oscar.definitions_read == 1
        oscar.token = token(2)
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        assert oscar.definitions_read == 2
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        assert oscar.definitions_read == 2


async def test_a_token_refused_for_good_is_asked_for_once_and_refused() -> None:
    async with FakeOscar(answer=always(401)).serve() as oscar, service(oscar.url) as plants:
        answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "http_401")
        assert (oscar.definitions_read, len(oscar.requests)) == (2, 1)


async def test_no_such_service_is_a_refusal_that_heals() -> None:
    async with FakeOscar(services=set()).serve() as oscar, service(oscar.url) as plants:
        answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "http_404")
        assert "/system/services/plants" in answer.detail
        oscar.services.add("plants")
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("status", "verdict", "cause"),
    [
        (401, Verdict.REFUSED, "credentials"),
        (403, Verdict.REFUSED, "credentials"),
        (500, Verdict.UNAVAILABLE, "http_500"),
        (503, Verdict.UNAVAILABLE, "http_503"),
        (302, Verdict.REFUSED, "http_302"),
    ],
)
async def test_an_outage_of_the_management_api_is_no_refusal(
    status: int, verdict: Verdict, cause: str
) -> None:
    async with FakeOscar(management_status=status).serve() as oscar, service(oscar.url) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (verdict, cause)


async def test_another_owners_service_is_not_invoked() -> None:
    async with (
        FakeOscar(definition={"owner": "them"}).serve() as oscar,
        service(oscar.url, owner="us") as plants,
    ):
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "credentials")
    assert not oscar.requests


async def test_a_definition_without_a_token_is_a_refusal() -> None:
    async with FakeOscar(definition={"token": ""}).serve() as oscar, service(oscar.url) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "credentials")


async def test_a_password_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    auth = {"type": "basic", "username": "oscar", "password_file": file}
    async with FakeOscar().serve() as oscar, service(oscar.url, auth) as plants:
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.REFUSED
        file.write_text(PASSWORD + "\n")
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED


# --- Service tokens given ---------------------------------------------------------------------------------


async def test_a_token_file_is_read_again_when_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token(1) + "\n")
    async with (
        FakeOscar().serve() as oscar,
        service(oscar.url, {"type": "service-token", "token_file": file}) as plants,
    ):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        oscar.token = token(2)
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.REFUSED
        file.write_text(token(2) + "\n")
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        oscar.token = token(3)
        file.unlink()
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "credentials")
    assert str(file) in answer.detail


@pytest.mark.parametrize(
    ("text", "said"),
    [("short", "has 5 characters; OSCAR's have 64"), ("two words" + "x" * 55, "no bearer token has")],
)
async def test_a_token_that_is_none_is_a_refusal(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    async with (
        FakeOscar().serve() as oscar,
        service(oscar.url, {"type": "service-token", "token_file": file}) as plants,
    ):
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "credentials")
    assert said in answer.detail
    assert text not in answer.detail


# --- OIDC -------------------------------------------------------------------------------------------------


@dataclass
class Issuer:
    """A token endpoint. Each grant makes a new access token, which `oscar` accepts from then on."""

    oscar: FakeOscar
    lifetime: object = 3600
    refresh: str = "refresh-1"
    rotates: bool = False
    fails: int = 0
    forms: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)

    async def grant(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        self.forms.append(form)
        self.headers.append(request.headers.get("Authorization", ""))
        await asyncio.sleep(0.02)
        if self.fails:
            return web.Response(status=self.fails, text=f"no {form['refresh_token']}")
        if form["refresh_token"] != self.refresh:
            told = {"error": "invalid_grant", "error_description": f"{form['refresh_token']} is unknown"}
            return web.json_response(told, status=400)
        access = f"access-{len(self.forms)}"
        self.oscar.bearers = {access}
        answer: dict[str, Any] = {"access_token": access, "token_type": "Bearer"}
        if self.lifetime is not None:
            answer["expires_in"] = self.lifetime
        if self.rotates:
            answer["refresh_token"] = self.refresh = f"refresh-{len(self.forms) + 1}"
        return web.json_response(answer)


@asynccontextmanager
async def oidc(
    oscar: FakeOscar, auth: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[tuple[Issuer, OscarService]]:
    issuer = Issuer(oscar)
    app = web.Application()
    app.router.add_post("/token", issuer.grant)
    async with oscar.serve(), serve(app) as url:
        given = {"type": "oidc", "token_endpoint": url + "/token", "client_id": "bridge", **(auth or {})}
        if "refresh_token_file" not in given:
            given["refresh_token"] = "refresh-1"
        async with service(oscar.url, given, **more) as plants:
            yield issuer, plants


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move the credentials' clock forward by some seconds."""
    real, ahead = time.monotonic, [0.0]

    clock = SimpleNamespace(time=time.time, monotonic=lambda: real() + ahead[0])
    monkeypatch.setattr(auth_module, "time", clock)

    def advance(seconds: float) -> None:
        ahead[0] += seconds

    return advance


async def test_an_access_token_is_fetched_once_and_refreshed_before_it_expires(
    clock: Callable[[float], None],
) -> None:
    async with oidc(FakeOscar()) as (issuer, plants):
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        assert issuer.forms == [
            {
                "grant_type": "refresh_token",
                "refresh_token": "refresh-1",
                "client_id": "bridge",
                "scope": "openid email profile voperson_id eduperson_entitlement",
            }
        ]
        clock(3600 - 65)
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        assert len(issuer.forms) == 1
        clock(10)  # 55 s before its expiry
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        assert len(issuer.forms) == 2


async def test_a_refresh_that_fails_before_expiry_does_no_harm(clock: Callable[[float], None]) -> None:
    async with oidc(FakeOscar()) as (issuer, plants):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        issuer.fails = 503
        clock(3600 - 30)
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        assert len(issuer.forms) == 2  # and no more for some seconds
        clock(31)
        answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "http_503")
        issuer.fails = 0
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED


async def test_whether_the_last_fetch_gave_a_token_is_told_once_there_was_one() -> None:
    granted = [Grant("one"), None, Grant("two")]

    async def fetch() -> Grant:
        if (grant := granted.pop(0)) is None:
            raise refused("no")
        return grant

    bearer = Bearer(fetch)
    assert bearer.works() is None
    used = await bearer.get()
    assert bearer.works() is True
    with pytest.raises(NoCredentialError):
        await bearer.renew(used)
    assert bearer.works() is False
    await bearer.renew(used)
    assert bearer.works() is True


async def test_an_answer_to_a_token_that_was_replaced_meanwhile_may_be_about_it() -> None:
    granted = [Grant("one"), Grant("two")]

    async def fetch() -> Grant:
        return granted.pop(0)

    bearer = Bearer(fetch)
    used = await bearer.get()
    assert not bearer.doubtful(used)
    another = await bearer.renew(used)
    assert another is not None
    assert bearer.doubtful(used)
    assert not bearer.doubtful(another)
    assert await bearer.renew(used) == another


async def test_of_a_page_in_the_token_endpoint_s_place_the_status_alone_is_told_and_the_text_is_logged() -> (
    None
):
    async with oidc(FakeOscar()) as (issuer, plants):
        issuer.fails = 503
        with capture_logs() as lines:
            answer = await plants.prepare(event()).attempt()
    assert answer.detail == "token endpoint answered 503"
    assert [line["text"] for line in lines if "text" in line] == ["no [redacted]"]


async def test_workers_share_a_failure_too() -> None:
    async with oidc(FakeOscar()) as (issuer, plants):
        issuer.refresh = "another"
        assert await invoke_at_once(plants) == [Verdict.REFUSED] * 16
        assert len(issuer.forms) == 1
        answer = await plants.prepare(event()).attempt()
    assert answer.cause == "credentials"
    assert "invalid_grant" in answer.detail
    assert "refresh-1" not in answer.detail


async def test_a_5xx_that_meets_a_token_near_its_expiry_is_not_the_events(
    clock: Callable[[float], None],
) -> None:
    async with oidc(FakeOscar(refusal=500)) as (issuer, plants):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        issuer.oscar.bearers = set()  # expired by the cluster's clock, which is ahead
        far = await plants.prepare(event()).attempt()
        assert (far.verdict, len(issuer.forms)) == (Verdict.CAPACITY, 1)
        clock(3600 - 100)
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        assert len(issuer.forms) == 2


async def test_a_5xx_that_stays_is_judged_after_one_refresh(clock: Callable[[float], None]) -> None:
    async with oidc(FakeOscar()) as (issuer, plants):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        issuer.oscar.answer = always(500, "no such secret")
        clock(3600 - 100)
        answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.status) == (Verdict.FAILED, 500)
        assert len(issuer.forms) == 2
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.FAILED
        assert len(issuer.forms) == 2


async def test_a_run_that_failed_is_not_made_again_for_its_token(clock: Callable[[float], None]) -> None:
    async with oidc(FakeOscar(answer=always(500)), mode="run") as (issuer, plants):
        await plants.prepare(event()).attempt()
        clock(3600 - 100)
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.FAILED
        assert (len(issuer.forms), len(issuer.oscar.requests)) == (1, 2)


async def test_an_empty_404_of_run_is_asked_once_more_since_the_issuer_may_have_had_a_hiccup() -> None:
    async with oidc(FakeOscar(answer=always(404)), mode="run") as (issuer, plants):
        oscar = issuer.oscar

        async def hiccup(_request: web.Request, _body: bytes) -> web.StreamResponse:
            oscar.answer = always(200, "done")
            return web.Response(status=404)

        oscar.answer = hiccup
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        assert (len(oscar.requests), len(issuer.forms)) == (2, 1)
        oscar.answer = always(404)  # the application's, since OSCAR takes the token and has the service
        answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.cause, len(oscar.requests)) == (Verdict.REJECTED, "http_404", 4)
        oscar.management_status = 503  # the issuer is still away: it may be OSCAR's
        answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "http_503")
        assert answer.perhaps_its_own, "the application's it may be, too"
        oscar.management_status, oscar.services = 200, set()
        answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "http_404")
        assert not answer.perhaps_its_own
        assert len(oscar.requests) == 6


@pytest.mark.parametrize("status", [403, 500])
async def test_an_empty_404_of_run_is_perhaps_the_event_s_own_where_the_definition_can_not_be_read(
    status: int,
) -> None:
    async with oidc(FakeOscar(answer=always(404)), mode="run") as (issuer, plants):
        issuer.oscar.management_status = status  # two owners have a service of this name, say
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause, answer.status) == (Verdict.REFUSED, "http_404", 404)
    assert answer.perhaps_its_own, "it holds no other event of a service that accepts them"
    assert f"answered {status}" in answer.detail
    assert len(issuer.oscar.requests) == 1


async def test_an_access_token_that_was_revoked_makes_no_run_a_dead_letter() -> None:
    async with oidc(FakeOscar(refusal=404, answer=always(200, "done")), mode="run") as (issuer, plants):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        issuer.oscar.bearers = set()  # long before its expiry
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
    assert len(issuer.forms) == 2


@pytest.mark.parametrize(("status", "text"), [(404, "no such column"), (401, "no such user"), (403, "")])
async def test_what_the_application_says_is_not_run_again_for_a_token_near_its_expiry(
    clock: Callable[[float], None], status: int, text: str
) -> None:
    async with oidc(FakeOscar(), mode="run") as (issuer, plants):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        issuer.oscar.answer = always(status, text)
        clock(3600 - 100)
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.REJECTED, f"http_{status}")
    assert len(issuer.oscar.requests) == 2


async def test_a_401_renews_the_access_token() -> None:
    async with oidc(FakeOscar()) as (issuer, plants):
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        issuer.oscar.bearers = set()
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
        assert len(issuer.forms) == 2


async def test_a_rotated_refresh_token_is_used_next_and_a_new_file_before_it(tmp_path: Path) -> None:
    file = tmp_path / "refresh"
    file.write_text("refresh-1\n")
    async with oidc(FakeOscar(), {"refresh_token_file": file}) as (issuer, plants):
        issuer.rotates = True
        for _ in range(3):
            issuer.oscar.bearers = set()
            assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        file.write_text("from-the-operator\n")
        issuer.refresh = "from-the-operator"
        issuer.oscar.bearers = set()
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        sent = [form["refresh_token"] for form in issuer.forms]
    assert sent == ["refresh-1", "refresh-2", "refresh-3", "from-the-operator"]


async def test_a_confidential_client_tells_its_secret_in_the_header() -> None:
    async with oidc(FakeOscar(), {"client_secret": "s:/ecret"}) as (issuer, plants):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
    assert issuer.headers == ["Basic YnJpZGdlOnMlM0ElMkZlY3JldA=="]  # bridge:s%3A%2Fecret
    assert "client_id" not in issuer.forms[0]


@pytest.mark.parametrize(
    ("told", "seconds"),
    [(None, 300), ("1800", 1800), ("soon", 300), (0, 1), ([], 300), (10**400, 300)],
)
async def test_a_lifetime_that_is_not_told_is_taken_for_five_minutes(told: object, seconds: float) -> None:
    metrics = Metrics()
    async with oidc(FakeOscar(), metrics=metrics) as (issuer, plants):
        issuer.lifetime = told
        left = metrics.registry.get_sample_value("bridge_credential_expiry_seconds", {"cluster": "main"})
        assert left is not None
        assert math.isnan(left)
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        left = metrics.registry.get_sample_value("bridge_credential_expiry_seconds", {"cluster": "main"})
    assert left is not None
    assert seconds - 5 < left <= seconds


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a":' * 100_000])
def test_whatever_is_no_object_is_an_empty_one(text: str) -> None:
    assert json_object(text) == {}


async def test_a_token_endpoint_out_of_reach_is_no_refusal() -> None:
    auth = {
        "type": "oidc",
        "token_endpoint": "http://127.0.0.1:9/token",
        "client_id": "c",
        "refresh_token": "r",
    }
    async with FakeOscar().serve() as oscar, service(oscar.url, auth) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "connect")


@pytest.fixture
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home with a password for any server, as curl and git would use it."""
    file = tmp_path / ".netrc"
    file.write_text("default login someone password of-another-service\n")
    file.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)


@pytest.mark.usefixtures("netrc")
async def test_no_password_of_a_netrc_is_sent_to_a_token_endpoint_or_to_oscar() -> None:
    async with oidc(FakeOscar()) as (issuer, plants):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
    assert issuer.headers == [""]
    assert [request.headers["Authorization"] for request in issuer.oscar.requests] == ["Bearer access-1"]


@pytest.mark.parametrize("padding", [1 << 20, 64 << 20])
async def test_a_token_endpoint_that_answers_too_much_is_told(padding: int) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"access_token": "access-1", "padding": "')
        with contextlib.suppress(ConnectionError):
            while sent < padding:
                await response.write(b"x" * 65536)
                sent += 65536
            await response.write(b'"}')
        return response

    app = web.Application()
    app.router.add_post("/token", endless)
    async with FakeOscar(bearers={"access-1"}).serve() as oscar, serve(app) as url:
        auth = {"type": "oidc", "token_endpoint": url + "/token", "client_id": "c", "refresh_token": "r"}
        async with service(oscar.url, auth) as plants:
            answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "answer_lost")
    assert "answer has more than 1048576 bytes" in answer.detail
    assert sent < 16 << 20  # the kernel's buffers, and aiohttp's
    assert not oscar.requests


async def test_a_definition_that_is_too_large_is_told() -> None:
    async with (
        FakeOscar(definition={"script": "x" * (4 << 20)}).serve() as oscar,
        service(oscar.url) as plants,
    ):
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "answer_lost")
    assert "/system/services/plants: the answer has more than 4194304 bytes" in answer.detail


async def test_a_definition_that_breaks_off_is_no_refusal() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"token": "')
        assert request.transport is not None
        request.transport.close()
        return response

    app = web.Application()
    app.router.add_get("/system/services/plants", half)
    async with serve(app) as url, service(url) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "answer_lost")


# --- oidc-agent -------------------------------------------------------------------------------------------


@asynccontextmanager
async def agent(path: Path, answer: dict[str, Any] | None) -> AsyncIterator[list[dict[str, Any]]]:
    """Answer in two pieces and keep the connection, as an agent may."""
    asked: list[dict[str, Any]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(json.loads(await reader.read(65536)))
        if answer is not None:
            raw = json.dumps(answer).encode()
            writer.write(raw[:10])
            await writer.drain()
            writer.write(raw[10:])
            await writer.drain()
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(handle, path)
    try:
        yield asked
    finally:
        server.close()


async def test_an_agent_gives_the_token(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    given = {"status": "success", "access_token": "of-the-agent", "issuer": "i", "expires_at": 9_999_999_999}
    auth = {"type": "oidc-agent", "account": "egi", "socket": path}
    async with (
        FakeOscar(bearers={"of-the-agent"}).serve() as oscar,
        agent(path, given) as asked,
        service(oscar.url, auth) as plants,
    ):
        assert await invoke_at_once(plants) == [Verdict.ACCEPTED] * 16
    [request] = asked
    assert (request["request"], request["account"]) == ("access_token", "egi")
    assert request["min_valid_period"] >= 60


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"status": "failure", "error": "No account configured with that short name"}, "No account"),
        ({"status": "success"}, "without an access_token"),
        ({"status": "success", "access_token": "x" * 300_000}, "answered more than 262144 bytes"),
        (None, "without an access_token"),
    ],
)
async def test_an_agent_without_a_token_is_a_refusal(
    tmp_path: Path, told: dict[str, Any] | None, said: str
) -> None:
    path = tmp_path / "agent.sock"
    auth = {"type": "oidc-agent", "account": "egi", "socket": path}
    async with FakeOscar().serve() as oscar, agent(path, told), service(oscar.url, auth) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "credentials")
    assert said in answer.detail


async def test_an_agent_that_is_not_there_is_no_refusal(tmp_path: Path) -> None:
    auth = {"type": "oidc-agent", "account": "egi", "socket": tmp_path / "none"}
    async with FakeOscar().serve() as oscar, service(oscar.url, auth) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "connect")


# --- The bearer itself ------------------------------------------------------------------------------------


async def test_a_cancelled_fetch_leaves_its_turn_to_the_next() -> None:
    calls = 0
    started = asyncio.Event()

    async def fetch() -> Grant:
        nonlocal calls
        calls += 1
        started.set()
        if calls == 1:
            await asyncio.Event().wait()
        return Grant("good")

    bearer = Bearer(fetch)
    first = asyncio.create_task(bearer.get())
    others = [asyncio.create_task(bearer.get()) for _ in range(5)]
    await started.wait()
    first.cancel()
    assert set(await asyncio.gather(*others)) == {"Bearer good"}
    with pytest.raises(asyncio.CancelledError):
        await first
    assert calls == 2


async def test_a_fetch_that_hangs_is_given_up_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_module, "_FETCH_SECONDS", 0.05)

    async def fetch() -> Grant:
        await asyncio.Event().wait()
        return Grant("never")

    with capture_logs() as lines, pytest.raises(NoCredentialError) as raised:
        await Bearer(fetch).get()
    assert raised.value.answer == Answer(Verdict.UNAVAILABLE, "timeout", "no credential within 0.05 s")
    assert [(line["event"], line["cause"]) for line in lines] == [("no credential", "timeout")]


async def test_a_renewal_that_gives_the_same_token_gives_none() -> None:
    async def fetch() -> Grant:
        return Grant("same")

    bearer = Bearer(fetch)
    assert await bearer.renew(await bearer.get()) is None


async def test_a_bearer_does_not_show_its_token() -> None:
    async def fetch() -> Grant:
        return Grant("very-secret")

    bearer = Bearer(fetch)
    await bearer.get()
    assert "very-secret" not in repr(bearer) + str(refused("x"))


# --- Nobody sees them -------------------------------------------------------------------------------------


async def test_no_secret_is_in_a_log_line_or_a_detail() -> None:
    """The servers here send every credential back in their bodies."""
    echo = always(500, f"you sent {token(1)}, token {token(1)}")
    answers: list[Answer] = []
    with capture_logs() as lines:
        async with FakeOscar(answer=echo).serve() as oscar, service(oscar.url) as plants:
            answers.append(await plants.prepare(event()).attempt())
            oscar.management_status = 403
            oscar.token = token(2)
            answers.append(await plants.prepare(event()).attempt())
        async with oidc(FakeOscar(answer=always(500, "access-1"))) as (issuer, plants):
            answers.append(await plants.prepare(event()).attempt())
            issuer.fails = 400
            issuer.oscar.bearers = set()
            answers.append(await plants.prepare(event()).attempt())
    seen = repr(answers) + repr(lines)
    assert len([answer for answer in answers if answer.detail]) == 4
    assert lines
    for hidden in (token(1), PASSWORD, "access-1", "refresh-1"):
        assert hidden not in seen
