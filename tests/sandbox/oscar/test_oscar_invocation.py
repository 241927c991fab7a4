"""`POST /job` and `POST /run` answer as OSCAR's sources do."""

import base64
import io
import json
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.sandbox.oscar.expansion import expand
from bridge.sandbox.oscar.invocation import principal

EVENT = b'{"hello": "world"}'
ADMIN = {"Authorization": "Basic " + base64.b64encode(b"oscar:sandbox").decode()}


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True)) as cluster:
        yield cluster


def bearer(token: str, name: str | None = None) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {token}"}
    return headers | ({"X-Delegated-Job-ID": name} if name is not None else {})


async def post(
    http: aiohttp.ClientSession, path: str, headers: dict[str, str], body: bytes | io.BytesIO = EVENT
) -> tuple[int, str]:
    async with http.post(path, data=body, headers=headers) as answer:
        return answer.status, await answer.text()


async def test_a_job_is_created_under_the_delegated_name(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    service = oscar.add_service("plants")
    assert await post(http, "/job/plants", bearer(service.token, "one")) == (201, "")
    assert oscar.ledger.created == {"one": 1}
    assert oscar.ledger.bodies("plants") == [EVENT]
    assert oscar.ledger.requests == 1


async def test_a_taken_name_is_answered_with_the_text_of_kubernetes(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    service = oscar.add_service("plants")
    await post(http, "/job/plants", bearer(service.token, "one"))
    answer = await post(http, "/job/plants", bearer(service.token, "one"))
    assert answer == (500, 'jobs.batch "one" already exists')
    assert oscar.ledger.created == {"one": 1}


async def test_names_are_shared_by_the_services_of_one_namespace(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    plants, birds = oscar.add_service("plants"), oscar.add_service("birds")
    mine = oscar.add_service("mine", owner="alice")
    await post(http, "/job/plants", bearer(plants.token, "one"))
    assert (await post(http, "/job/birds", bearer(birds.token, "one")))[0] == 500
    assert (await post(http, "/job/mine", bearer(mine.token, "one")))[0] == 201


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Not_A_Label", "a lowercase RFC 1123 subdomain must consist of lower case"),
        ("a" * 64, "must be no more than 63 characters"),
        ("-a", "a lowercase RFC 1123 subdomain"),
    ],
)
async def test_a_name_kubernetes_refuses_is_a_500_with_its_reason(
    oscar: SandboxOscar, http: aiohttp.ClientSession, name: str, text: str
) -> None:
    service = oscar.add_service("plants")
    status, answer = await post(http, "/job/plants", bearer(service.token, name))
    assert status == 500
    assert answer.startswith(f'Job.batch "{name}" is invalid: ')
    assert text in answer
    assert oscar.ledger.total == 0


@pytest.mark.parametrize(
    ("service", "prefix"), [("plants", "plants"), ("a-name-of-25-characters-x", "a-name-of-25-cha")]
)
async def test_without_the_header_oscar_makes_a_name_of_the_service_and_a_uuid(
    oscar: SandboxOscar, http: aiohttp.ClientSession, service: str, prefix: str
) -> None:
    token = oscar.add_service(service).token
    await post(http, f"/job/{service}", bearer(token))
    await post(http, f"/job/{service}", bearer(token))
    assert len(oscar.ledger.created) == 2
    assert all(re.fullmatch(rf"{prefix}-[0-9a-f-]{{36}}", name) for name in oscar.ledger.created)


async def test_before_4_1_0_the_header_is_ignored(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    oscar.settings.version = "4.0.0"
    service = oscar.add_service("plants")
    for _ in range(2):
        assert (await post(http, "/job/plants", bearer(service.token, "one")))[0] == 201
    assert "one" not in oscar.ledger.created
    assert oscar.ledger.total == 2


async def test_a_name_is_free_again_after_ttl_job(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    service = oscar.add_service("plants")
    await post(http, "/job/plants", bearer(service.token, "one"))
    oscar.settings.ttl_job_seconds = 0
    assert (await post(http, "/job/plants", bearer(service.token, "one")))[0] == 201
    assert oscar.ledger.created == {"one": 2}


async def test_only_a_bearer_is_taken(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    oscar.add_service("plants")
    for path in ("/job/plants", "/run/plants"):
        assert await post(http, path, ADMIN) == (401, "")
        assert await post(http, path, {}) == (401, "")
        assert await post(http, path, bearer("0" * 64)) == (401, "")


async def test_an_unknown_service_is_401_with_a_service_token_and_404_with_oidc(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    user = oscar.oidc.access_token("alice")
    for path in ("/job/none", "/run/none"):
        assert await post(http, path, bearer("0" * 64)) == (401, "")
        assert await post(http, path, bearer(user)) == (404, "")
    oscar.settings.version = "3.7.1"
    for path in ("/job/none", "/run/none"):
        assert await post(http, path, {}) == (404, "")


async def test_an_unreadable_token_is_502_and_a_foreign_one_400(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants")
    for path in ("/job/plants", "/run/plants"):
        status, text = await post(http, path, bearer("nonsense"))
        assert status == 502
        assert text.startswith("token is malformed")
        foreign = oscar.oidc.access_token("alice", issuer="https://elsewhere.example.org")
        assert await post(http, path, bearer(foreign)) == (
            400,
            "Error getting oidc manager for issuer 'https://elsewhere.example.org'",
        )


async def test_an_expired_or_revoked_token_is_500_on_job_and_404_on_run(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants", visibility="public")
    expired, revoked = oscar.oidc.access_token("alice", seconds=-1), oscar.oidc.access_token("alice")
    oscar.oidc.revoke(revoked)
    for token in (expired, revoked):
        assert await post(http, "/job/plants", bearer(token)) == (500, "")
        assert await post(http, "/run/plants", bearer(token)) == (404, "")


async def test_an_oidc_user_must_be_provisioned_and_in_a_group(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants", visibility="public")
    stranger = oscar.oidc.access_token("alice", groups=("other",))
    assert await post(http, "/job/plants", bearer(stranger)) == (401, "")
    member = oscar.oidc.access_token("alice")
    assert await post(http, "/job/plants", bearer(member)) == (
        403,
        "MinIO user not provisioned for alice; submit a direct request first",
    )
    async with http.get("/system/info", headers=bearer(member)) as direct:
        assert direct.status == 200
    assert (await post(http, "/job/plants", bearer(member, "one")))[0] == 201
    job = oscar.job("one")
    assert job is not None
    assert job.owner_label == "alice"


async def test_an_egi_user_does_not_reach_a_private_service_by_job(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants", owner="abc@egi.eu")
    oscar.settings.provisioned.add("abc")
    token = oscar.oidc.access_token("abc@egi.eu")
    assert (await post(http, "/job/plants", bearer(token)))[0] == 404
    assert (await post(http, "/run/plants", bearer(token)))[0] == 200


async def test_two_services_of_one_name_need_the_owner(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.settings.provisioned |= {"alice", "bob"}
    oscar.add_service("plants", owner="alice", visibility="public")
    oscar.add_service("plants", owner="bob", visibility="public")
    token = oscar.oidc.access_token("alice")
    assert await post(http, "/job/plants", bearer(token)) == (
        400,
        "More than one service authorize, use the owner query to select the service",
    )
    assert (await post(http, "/job/plants?owner=carol", bearer(token)))[0] == 404
    assert (await post(http, "/job/plants?owner=bob", bearer(token, "one")))[0] == 201
    job = oscar.job("one")
    assert job is not None
    assert job.namespace.startswith("oscar-svc-bob")


def s3_event(principal_id: str | None) -> bytes:
    parameters = {"sourceIPAddress": "10.0.0.1"} | ({"principalId": principal_id} if principal_id else {})
    return json.dumps({"Records": [{"eventSource": "minio:s3", "requestParameters": parameters}]}).encode()


async def test_an_unknown_minio_user_fails_in_a_users_namespace_and_hangs_in_the_shared_one(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    mine, shared = oscar.add_service("mine", owner="alice"), oscar.add_service("shared")
    assert await post(http, "/job/mine", bearer(mine.token), s3_event("mallory")) == (
        500,
        'error ensuring credentials for user mallory: secrets "mallory" not found',
    )
    assert (await post(http, "/job/shared", bearer(shared.token, "hangs"), s3_event("mallory")))[0] == 201
    job = oscar.job("hangs")
    assert job is not None
    assert job.phase == "Pending"
    assert job.owner_label == "mallory"
    assert (await post(http, "/job/mine", bearer(mine.token), s3_event("minio")))[0] == 201
    status, text = await post(http, "/job/shared", bearer(shared.token), s3_event("AWS:AIDA"))
    assert status == 500
    assert 'metadata.labels: Invalid value: "AWS:AIDA": a valid label must be' in text


async def test_records_without_a_principal_empty_the_owner_label(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.settings.provisioned.add("alice")
    oscar.add_service("plants", visibility="public")
    await post(http, "/job/plants", bearer(oscar.oidc.access_token("alice"), "one"), s3_event(None))
    job = oscar.job("one")
    assert job is not None
    assert job.owner_label == ""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (s3_event("alice"), "alice"),
        (s3_event(None), ""),
        (b'{"\\u0052ecords": [{"requestParameters": {"principalId": "a", "sourceIPAddress": "b"}}]}', "a"),
        (b'{"Records": []}', ""),
        (b'{"Records": [{}]}', ""),
        (b'{"Records": ["text"]}', ""),
        (b'{"Records": {"0": {}}}', None),
        (b'["Records"]', None),
        (b'"Records"', None),
        (b"Records", None),
        (b'{"Records": [{}], "n": 1e400}', None),
        (b'{"Records": [{}], "n": NaN}', None),
        (b'{"Records": [{}], "t": "\xff"}', ""),
    ],
)
def test_the_body_chooses_the_minio_user_as_go_reads_it(body: bytes, expected: str | None) -> None:
    assert principal(body) == expected


async def test_a_body_of_any_size_is_read_unless_an_ingress_stands_before(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    service = oscar.add_service("plants")
    body = b"A" * 1_200_000
    assert (await post(http, "/job/plants", bearer(service.token), io.BytesIO(body)))[0] == 201
    assert await post(http, "/job/plants", bearer(service.token), io.BytesIO(b"A" * 1_600_000)) == (
        500,
        "etcdserver: request is too large",
    )
    oscar.settings.max_body_bytes = 1_000_000
    assert (await post(http, "/job/plants", bearer(service.token), io.BytesIO(body)))[0] == 413


async def test_a_service_made_anew_has_another_token(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    service = oscar.add_service("plants")
    old = service.token
    assert re.fullmatch("[0-9a-f]{64}", old)
    new = oscar.rotate_token(service)
    assert (await post(http, "/job/plants", bearer(old)))[0] == 401
    assert (await post(http, "/job/plants", bearer(new)))[0] == 201


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B)", "$(B)"),
        ("$(A", "$(A"),
        ("$A $", "$A $"),
        ("$()", "$()"),
        ("é$é$(A)$(A)", "é$é11"),
    ],
)
def test_kubernetes_expands_dollars(value: str, expected: str) -> None:
    assert expand(value, {"A": "1"}) == expected


@given(st.text(alphabet="$()AB é"))
def test_doubled_dollars_come_out_single_and_nothing_else_changes(text: str) -> None:
    assert expand(text.replace("$", "$$"), {"A": "1"}) == text
