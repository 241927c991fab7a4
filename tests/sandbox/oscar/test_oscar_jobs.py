"""Jobs really run: as processes, under the unquoted shell line of OSCAR."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bridge.sandbox.oscar import Job, SandboxOscar, Service, Settings
from bridge.testing import until
from tests.servers.oscar import invoke

CAT = 'cat "$INPUT_FILE_PATH"'


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar() as cluster:
        yield cluster


async def submit(oscar: SandboxOscar, service: Service, *bodies: bytes) -> list[Job]:
    """Create one job a body, in order."""
    jobs = []
    async with aiohttp.ClientSession(oscar.url) as http:
        for body in bodies:
            name = f"job-{oscar.ledger.requests}"
            headers = {"Authorization": f"Bearer {service.token}", "X-Delegated-Job-ID": name}
            async with http.post(f"/job/{service.name}", data=body, headers=headers) as answer:
                assert answer.status == 201
            job = oscar.job(name)
            assert job is not None
            jobs.append(job)
    return jobs


async def finish(oscar: SandboxOscar, service: Service, *bodies: bytes) -> list[Job]:
    jobs = await submit(oscar, service, *bodies)
    await until(lambda: all(job.phase in ("Succeeded", "Failed") for job in jobs))
    return jobs


async def test_the_shell_and_kubernetes_change_a_careless_event_on_its_way(oscar: SandboxOscar) -> None:
    service = oscar.add_service("plants", CAT)
    bodies = (b'{"a": "x   y"}', b'{"a":"$(OSCAR_SECRET)"}', b'{"a":"$$"}', b'{"a":"p * q"}')
    spaces, secret, dollars, glob = await finish(oscar, service, *bodies)
    assert spaces.event_seen == b'{"a": "x y"}\n'
    assert secret.event_seen == b'{"a":"sandbox-secret"}\n'
    assert dollars.event_seen == b'{"a":"$"}\n'
    assert glob.event_seen == b'{"a":"p bin etc usr q"}\n'


async def test_the_service_token_itself_can_be_read_by_an_event(oscar: SandboxOscar) -> None:
    service = oscar.add_service(
        "plants", CAT, environment={"variables": {"COLOUR": "red"}, "secrets": {"S": "s"}}
    )
    [job] = await finish(oscar, service, b'["$(OSCAR_SERVICE_TOKEN)$(COLOUR)$(S)$(JOB_UUID)"]')
    assert job.event_seen == f'["{service.token}reds$(JOB_UUID)"]\n'.encode()


async def test_an_event_in_escapes_comes_through(oscar: SandboxOscar) -> None:
    value = "".join(map(chr, range(1, 127))) + "   * ? [a] $(OSCAR_SECRET) $$ é \U0001f600"
    escaped = "".join(c if c.isalnum() and c.isascii() else f"\\u{u:04x}" for c in value for u in utf16(c))
    [job] = await finish(oscar, oscar.add_service("plants", CAT), f'{{"a":"{escaped}"}}'.encode())
    assert job.phase == "Succeeded"
    assert job.input_seen is not None
    assert json.loads(job.input_seen) == {"a": value}
    assert job.log.strip() == job.input_seen


def utf16(character: str) -> list[int]:
    encoded = character.encode("utf-16-be")
    return [int.from_bytes(encoded[i : i + 2]) for i in range(0, len(encoded), 2)]


async def test_base64_comes_out_as_the_bytes_it_stands_for(oscar: SandboxOscar) -> None:
    service = oscar.add_service("plants", CAT)
    originals = (bytes(range(256)), b"[1, 2]", b"null", b"")
    jobs = await finish(oscar, service, *(base64.b64encode(original) for original in originals))
    assert [job.input_seen for job in jobs] == list(originals)
    [dotted] = await finish(oscar, service, b".1234")
    assert dotted.input_seen == base64.b64decode("1234")


@pytest.mark.parametrize("body", [b"[1]", b"5", b"true", b"null", b'{"event_type": "close"}', b"AAAAA"])
async def test_what_the_supervisor_can_not_read_fails_after_a_201(oscar: SandboxOscar, body: bytes) -> None:
    [job] = await finish(oscar, oscar.add_service("plants", CAT), body)
    assert job.phase == "Failed"
    assert job.event_seen == body + b"\n"
    assert b"Error" in job.log


async def test_the_longest_event_is_131065_bytes(oscar: SandboxOscar) -> None:
    service = oscar.add_service("plants", "true")
    fits, too_long = await finish(oscar, service, b"A" * 131_065, b"A" * 131_066)
    assert fits.event_seen == b"A" * 131_065 + b"\n"
    assert too_long.phase == "Failed"
    assert b"argument list too long" in too_long.log
    assert too_long.event_seen is None


async def test_a_storage_event_can_outgrow_the_limit_inside_the_supervisor(oscar: SandboxOscar) -> None:
    service = oscar.add_service("plants", 'echo "$STORAGE_OBJECT_KEY"')
    record = '{"Records":[{"eventSource":"minio:s3","eventTime":"now","s3":{"bucket":{"name":"b","arn":"b"},'
    small = record + '"object":{"key":"a+b%2Fc"}}}]}'
    large = record + '"object":{"key":"' + "é" * 60_000 + '"}}}]}'
    ok, failed = await finish(oscar, service, small.encode(), large.encode())
    assert ok.log.strip() == b"a b/c"
    assert failed.phase == "Failed"
    assert b"Argument list too long" in failed.log


async def test_interlink_services_get_the_body_in_base64(oscar: SandboxOscar) -> None:
    service = oscar.add_service("plants", CAT, interlink_node_name="hpc")
    [job] = await finish(oscar, service, b'{"a": "x   $$ *"}')
    assert job.event_seen == b'{"a": "x   $$ *"}'


async def test_a_script_that_fails_makes_a_job_that_succeeds_and_a_killed_one_fails(
    oscar: SandboxOscar,
) -> None:
    [failing] = await finish(oscar, oscar.add_service("failing", "echo oh; exit 3"), b"{}")
    assert (failing.phase, failing.log) == ("Succeeded", b"oh\n\n")
    [killed] = await finish(oscar, oscar.add_service("killed", "kill -9 $PPID"), b"{}")
    assert killed.phase == "Failed"


async def test_a_file_in_the_output_folder_is_the_answer_in_base64(oscar: SandboxOscar) -> None:
    service = oscar.add_service("plants", 'printf hello > "$TMP_OUTPUT_DIR/out"; echo ignored')
    [job] = await finish(oscar, service, b"{}")
    assert base64.b64decode(job.log) == b"hello"


async def test_no_more_than_max_pods_run_at_once_and_the_rest_is_pending() -> None:
    async with SandboxOscar(Settings(max_pods=1)) as oscar:
        service = oscar.add_service("slow", "sleep 60")
        first, second = await submit(oscar, service, b"{}", b"{}")
        await until(lambda: first.phase == "Running")
        assert second.phase == "Pending"
        oscar.jobs.delete(first)
        await until(lambda: second.phase == "Running")
        assert first.phase == "Failed"


async def test_a_job_deleted_while_its_process_is_made_is_ended_all_the_same(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = asyncio.create_subprocess_exec

    async def make_late(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await make(*args, **options)
        for job in oscar.jobs.all():
            oscar.jobs.delete(job)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", make_late)
    service = oscar.add_service("slow", "sleep 3600")
    async with aiohttp.ClientSession(oscar.url) as http:
        await invoke(http, service, "one")
    await until(lambda: oscar.ledger.created == {"one": 1} and oscar.jobs.all() == [])
    await until(lambda: oscar.activity().places_used == 0)


async def test_a_pod_stays_pending_for_as_long_as_told() -> None:
    async with SandboxOscar(Settings(pending_seconds=30)) as oscar:
        [job] = await submit(oscar, oscar.add_service("plants"), b"{}")
        assert job.phase == "Pending"
        assert job.as_json() == {"status": "Pending"}


async def test_kueue_holds_the_jobs_of_users_without_a_pod() -> None:
    async with SandboxOscar(Settings(kueue=True, pending_seconds=30)) as oscar:
        [job] = await submit(oscar, oscar.add_service("mine", owner="alice"), b"{}")
        assert job.phase == "Suspended"


async def test_closing_ends_every_process_and_leaves_no_folder(tmp_path: Path) -> None:
    async with SandboxOscar() as oscar:
        service = oscar.add_service(
            "slow", f"sleep 60 & echo $! $PPID > {tmp_path}/pids; pwd > {tmp_path}/pwd; wait"
        )
        await submit(oscar, service, b"{}")
        await until(lambda: (tmp_path / "pwd").exists() and (tmp_path / "pwd").read_text() != "")
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        folder = Path((tmp_path / "pwd").read_text().strip())
        assert all(alive(pid) for pid in pids)
        await until(folder.exists)
    await until(lambda: not any(alive(pid) for pid in pids))
    await until(lambda: not folder.exists())


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody waits for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter: it was reaped between opening and reading
        return False


async def test_an_event_that_is_too_long_fails_a_simulated_job_too() -> None:
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        [long] = await submit(oscar, oscar.add_service("other"), b"$$(" + b"A" * 131_065)
        assert long.phase == "Failed"
        assert b"argument list too long" in long.log
        # What never started did so in 1970, says Kubernetes.
        assert long.as_json()["start_time"] == "1970-01-01T00:00:00Z"
        assert long.as_json()["finish_time"] > "2026"


async def test_run_gives_the_output_and_the_supervisors_failure(oscar: SandboxOscar) -> None:
    service = oscar.add_service("plants", CAT)
    headers = {"Authorization": f"Bearer {service.token}"}
    async with aiohttp.ClientSession(oscar.url) as http:
        async with http.post("/run/plants", data=b'{"a": "x   $$ *"}', headers=headers) as answer:
            assert (answer.status, await answer.text()) == (200, '{"a": "x   $$ *"}\n')
        async with http.post("/run/plants", data=b"[]", headers=headers) as answer:
            assert answer.status == 500
            assert "TypeError" in await answer.text()
        oscar.settings.run_timeout_seconds = 0.2
        service.definition["script"] = "sleep 60"
        async with http.post("/run/plants", data=b"{}", headers=headers) as answer:
            assert answer.status == 504
    assert [entry.body for entry in oscar.ledger.runs] == [b'{"a": "x   $$ *"}', b"[]", b"{}"]


async def test_an_environment_of_the_host_does_not_reach_a_job(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HOST_ONLY", "secret")
    [job] = await finish(oscar, oscar.add_service("plants", "echo [$HOST_ONLY] $OSCAR_SERVICE_NAME"), b"{}")
    assert job.log.strip() == b"[] plants"
