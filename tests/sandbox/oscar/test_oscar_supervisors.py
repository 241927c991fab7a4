"""Two supervisors: the Python one hides how a script ended, the Go one passes it on. And their outputs."""

import asyncio
import base64
import io
import json
import os
import re
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from bridge.sandbox.oscar import Fault, Job, SandboxOscar, Settings, supervisor_go
from tests.servers.oscar import Clock, bearer, call, invoke

CAT = 'cat "$INPUT_FILE_PATH"'
OUTPUT = [{"storage_provider": "minio.default", "path": "results/out"}]


@pytest.fixture(params=["python", "go"])
async def oscar(request: pytest.FixtureRequest) -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(supervisor=request.param)) as cluster:
        yield cluster


@pytest.fixture
async def go() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(supervisor="go")) as cluster:
        yield cluster


async def finish(oscar: SandboxOscar, script: str, *bodies: bytes, **definition: Any) -> list[Job]:
    """Run a job a body to its end."""
    number = len(oscar.services.all())
    service = oscar.add_service(f"service-{number}", script, **definition)
    names = [f"{service.name}-job-{count}" for count in range(len(bodies))]
    async with aiohttp.ClientSession(oscar.url) as http:
        for name, body in zip(names, bodies, strict=True):
            await invoke(http, service, name, body=body)
    jobs = [job for name in names if (job := oscar.job(name)) is not None]
    async with asyncio.timeout(60):
        while any(job.phase not in ("Succeeded", "Failed") for job in jobs):
            await asyncio.sleep(0.01)
    return jobs


async def test_a_failing_script_fails_the_job_under_go_alone(oscar: SandboxOscar) -> None:
    [job] = await finish(oscar, "echo oh; echo no >&2; exit 3", b"{}")
    if oscar.settings.supervisor == "python":
        assert (job.phase, job.log) == ("Succeeded", b"oh\nno\n\n")
    else:
        assert job.phase == "Failed"
        lines = job.log.decode().splitlines()
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - supervisor - ERROR - Script exited with code 3",
            lines[-1],
        )
        assert "oh" not in job.log.decode()
        assert "no" not in lines


async def test_a_script_that_ends_well_is_well_under_both(oscar: SandboxOscar) -> None:
    [job] = await finish(oscar, "echo fine; echo hm >&2", b"{}")
    assert job.phase == "Succeeded"
    assert b"fine" in job.log


async def test_a_killed_script_is_minus_one_in_go(go: SandboxOscar) -> None:
    [job] = await finish(go, "kill -9 $$", b"{}")
    assert job.phase == "Failed"
    assert b"Script exited with code -1\n" in job.log


async def test_a_mounted_bucket_hides_the_scripts_end_from_kubernetes(oscar: SandboxOscar) -> None:
    """`; echo "I finish"` behind the supervisor (`pkg/handlers/job.go`)."""
    mount = {"storage_provider": "minio.default", "path": "mounted"}
    [job] = await finish(oscar, "exit 3", b"{}", mount=mount)
    assert job.phase == "Succeeded"


async def test_a_rule_of_the_faults_fails_a_script_that_really_runs(oscar: SandboxOscar) -> None:
    oscar.faults.set(Fault(scripts={"broken": 7}))
    failed, fine = await finish(oscar, CAT, b'{"a":"broken"}', b'{"a":1}', output=OUTPUT)
    python = oscar.settings.supervisor == "python"
    assert (failed.phase, fine.phase) == ("Succeeded" if python else "Failed", "Succeeded")
    assert (b"Script exited with code 7" in failed.log) is not python


@pytest.mark.parametrize(
    ("body", "python", "go_file"),
    [
        (b'{"b": 1.10, "a": 1}', b'{"b": 1.1, "a": 1}', b'{"b": 1.10, "a": 1}\n'),
        (b"[1,2]", None, b"[1,2]\n"),
        (b"5", None, b"5\n"),
        (b"null", None, b"null\n"),
        (b'"text"', b"\xb5\xec\x6d", b'"text"\n'),
        (b'{"event_type":"close"}', None, b'{"event_type":"close"}\n'),
        (base64.b64encode(b"bytes"), b"bytes", b"bytes"),
        (b".MTIz", b"123", b".MTIz\n"),  # Go's decoder does not skip the dot
        (b"AAAAA", None, b"AAAAA\n"),
        (
            b'{"event":{"b":2,"a":1e21,"c":0.5}}',
            b'{"b": 2, "a": 1e+21, "c": 0.5}',
            b'{"a":1e+21,"b":2,"c":0.5}',
        ),
    ],
)
async def test_each_reads_an_event_in_its_own_way(
    oscar: SandboxOscar, body: bytes, python: bytes | None, go_file: bytes
) -> None:
    [job] = await finish(oscar, CAT, body)
    if oscar.settings.supervisor == "go":
        assert (job.phase, job.input_seen) == ("Succeeded", go_file)
    else:
        assert (job.phase, job.input_seen) == (("Failed" if python is None else "Succeeded"), python)


async def test_a_storage_event_that_outgrows_the_limit_ends_well_in_go_without_its_script(
    go: SandboxOscar,
) -> None:
    """`cmd.Start` fails, `ExecuteFunction` returns the error, and nobody looks at it."""
    large = b'{"Records":[{"eventSource":"minio:s3","s3":{"object":{"key":"' + b"<" * 60_000
    [job] = await finish(go, "echo ran", large + b'"}}}]}')
    assert job.phase == "Succeeded"
    assert b"ran" not in job.log.split()
    assert b"Error starting script: fork/exec /bin/sh: argument list too long" in job.log


async def test_outputs_are_uploaded_below_the_path_by_their_filters(oscar: SandboxOscar) -> None:
    script = 'cd "$TMP_OUTPUT_DIR"; mkdir sub; echo 1 > a.csv; echo 2 > sub/b.csv; echo 3 > c.log'
    outputs = [*OUTPUT, {"storage_provider": "minio", "path": "tables", "suffix": [".csv"], "prefix": ["a"]}]
    [job] = await finish(oscar, script, b"{}", output=outputs)
    assert job.phase == "Succeeded"
    # A path without a bucket is in the service's own; each folder is an object of its own.
    assert oscar.buckets.keys("results") == ["out/", "out/a.csv", "out/c.log", "out/sub/b.csv"]
    assert oscar.buckets.keys("service-0") == ["tables/", "tables/a.csv"]


async def test_what_a_failed_script_left_is_uploaded_by_python_alone(oscar: SandboxOscar) -> None:
    await finish(oscar, 'echo half > "$TMP_OUTPUT_DIR/half"; exit 1', b"{}", output=OUTPUT)
    expected = ["out/", "out/half"] if oscar.settings.supervisor == "python" else ["out/"]
    assert oscar.buckets.keys("results") == expected


async def test_several_files_are_answered_as_one_zip(oscar: SandboxOscar) -> None:
    [job] = await finish(oscar, 'cd "$TMP_OUTPUT_DIR"; echo 1 > a; echo 2 > b', b"{}")
    answer = job.log.splitlines()[-1]
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(answer))) as archive:
        assert sorted(archive.namelist()) == ["a", "b"]


@pytest.mark.parametrize("supervisor", ["python", "go"])
async def test_a_simulated_job_ends_as_its_supervisor_would_and_leaves_an_output(
    supervisor: Any, clock: Clock
) -> None:
    settings = Settings(simulate=True, simulated_seconds=20, supervisor=supervisor)
    async with SandboxOscar(settings) as oscar, aiohttp.ClientSession(oscar.url) as http:
        plants = oscar.add_service("plants", output=OUTPUT)
        oscar.faults.set(Fault(scripts={"broken": 3}), "plants")
        await invoke(http, plants, "bad", body=b'{"a":"broken"}')
        clock.pass_(5)
        await invoke(http, plants, "good")
        clock.pass_(19)
        assert oscar.job("bad") is not None
        assert oscar.buckets.keys("results") == ["out/"]
        clock.pass_(1)
        _, answer = await call(http, "GET", "/system/logs/plants")
        failed = "Succeeded" if supervisor == "python" else "Failed"
        assert {name: job["status"] for name, job in answer["jobs"].items()} == {
            "bad": failed,
            "good": "Succeeded",
        }
        assert oscar.buckets.keys("results") == ["out/", "out/good"]
        status, log = await call(http, "GET", "/system/logs/plants/bad")
        assert status == 200
        assert log.endswith("Script exited with code 3\n") is (supervisor == "go")


@pytest.mark.parametrize("supervisor", ["python", "go"])
async def test_an_evicted_pod_fails_under_both_and_leaves_nothing(supervisor: Any, clock: Clock) -> None:
    settings = Settings(simulate=True, simulated_seconds=20, supervisor=supervisor)
    async with SandboxOscar(settings) as oscar, aiohttp.ClientSession(oscar.url) as http:
        plants = oscar.add_service("plants", output=OUTPUT)
        fault = {"services": {"plants": {"evictions": 1}}}
        assert (await call(http, "PUT", "/sandbox/faults", json=fault))[0] == 204
        await invoke(http, plants, "one")
        clock.pass_(10)
        job = oscar.job("one")
        assert job is not None
        assert (job.phase, job.finished - job.started) == ("Failed", pytest.approx(10))
        assert oscar.buckets.keys("results") == ["out/"]
        assert oscar.activity().active == {"plants": 0}
        assert oscar.faults.injected == {"eviction": 1}


@pytest.fixture
async def stored(clock: Clock) -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True)) as cluster:
        yield cluster


async def test_a_bucket_is_listed_in_pages_as_oscar_shows_it(stored: SandboxOscar, clock: Clock) -> None:
    stored.settings.jobs_a_page = 2
    stored.settings.provisioned.add("ana")
    clock.now = 1_796_029_691.34
    async with aiohttp.ClientSession(stored.url) as http:
        mine = stored.add_service("mine", owner="ana", output=OUTPUT)
        await invoke(http, mine, "b", "a")
        ana, eve = (bearer(stored.oidc.access_token(user)) for user in ("ana", "eve"))
        status, first = await call(http, "GET", "/system/buckets/results", ana)
        assert status == 200
        assert first["objects"] == [
            {"object_name": "out/", "size_bytes": 0, "last_modified": "2026-11-30 09:08:11.34 +0000 UTC"},
            {"object_name": "out/a", "size_bytes": 0, "last_modified": "2026-11-30 09:08:11.34 +0000 UTC"},
        ]
        assert (first["is_truncated"], first["returned_items"], first["visibility"]) == (True, 2, "private")
        assert first["owner"] == "ana"
        _, second = await call(http, "GET", f"/system/buckets/results?page={first['next_page']}", ana)
        assert [known["object_name"] for known in second["objects"]] == ["out/b"]
        assert (second["is_truncated"], "next_page" in second) == (False, False)
        # Whoever may call OSCAR at all may list a bucket that has a policy.
        assert (await call(http, "GET", "/system/buckets/results", eve))[0] == 200
        assert (await call(http, "GET", "/system/buckets/results", bearer(mine.token)))[0] == 400


async def test_an_administrators_bucket_is_the_administrators_alone(stored: SandboxOscar) -> None:
    stored.add_service("plants", output=OUTPUT)
    ana = bearer(stored.oidc.access_token("ana"))
    async with aiohttp.ClientSession(stored.url) as http:
        status, answer = await call(http, "GET", "/system/buckets/results")
        assert (status, answer["visibility"], answer["owner"]) == (200, "", "cluster_admin")
        assert await call(http, "GET", "/system/buckets/results", ana) == (
            403,
            "User 'ana' is not authorised",
        )
        status, text = await call(http, "GET", "/system/buckets/none")
        assert status == 500
        assert text.startswith("Error listing objects in bucket 'none': NoSuchBucket")


async def test_a_service_created_or_changed_over_http_has_its_buckets(stored: SandboxOscar) -> None:
    definition = {"name": "plants", "image": "alpine", "script": "cat"}
    async with aiohttp.ClientSession(stored.url) as http:
        first = definition | {"input": [{"storage_provider": "minio", "path": " /in/ "}]}
        assert (await call(http, "POST", "/system/services", json=first))[0] == 201
        assert (await call(http, "GET", "/system/services/plants"))[1]["input"][0]["path"] == "plants/in"
        assert stored.buckets.keys("plants") == ["in/"]
        second = definition | {"output": [{"storage_provider": "minio", "path": "results/deep/down"}]}
        assert (await call(http, "PUT", "/system/services", json=second))[0] == 204
        assert stored.buckets.keys("results") == ["deep/down/"]
        away = definition | {"output": [{"storage_provider": "s3.aws", "path": "far/out"}]}
        assert (await call(http, "PUT", "/system/services", json=away))[0] == 204
        assert (await call(http, "GET", "/system/buckets/far"))[0] == 500


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": [1, True, None], "a": "<é&>"}, '{"a":"\\u003cé\\u0026\\u003e","b":[1,true,null]}'),
        (12345678901234567890, "12345678901234567000"),
        ([0.1, 1e-7, 1e21, 1e20, -2.5], "[0.1,1e-7,1e+21,100000000000000000000,-2.5]"),
    ],
)
def test_an_object_written_by_go_has_sorted_keys_and_float64s(value: Any, text: str) -> None:
    assert supervisor_go.encode(supervisor_go.decode(json.dumps(value))) == text


def test_parameters_of_an_api_gateway_are_variables_in_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CONT_VAR_COLOUR", "")
    event = {"httpMethod": "GET", "queryStringParameters": {"COLOUR": "red"}, "body": '{"a":1}'}
    assert supervisor_go.parse(json.dumps(event)) == ("UNKNOWN", '{"a":1}')
    assert os.environ["CONT_VAR_COLOUR"] == "red"
    assert supervisor_go.parse('{"httpMethod":"GET"}') == ("UNKNOWN", "")
    assert supervisor_go.parse('{"event":{"name":"f"},"subscription":"u"}') == ("DCACHE", {"name": "f"})
    assert supervisor_go.parse('{"event_type":"t","payload":{"scope":"s"}}')[0] == "RUCIO"
    assert supervisor_go.parse('{"Records":[{"eventSource":"aws:sqs"}]}')[0] == "UNKNOWN"
