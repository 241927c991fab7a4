"""The project's own Python client works against the sandbox."""

import asyncio
import base64
import json
from pathlib import Path

import pytest
from oscar_python.client import Client

from bridge.sandbox.oscar import Fault, SandboxOscar, Settings


def life_of_a_service(url: str, output: Path) -> str:
    """Blocking, as the client is; gives the name of the job it made."""
    client = Client(
        {"cluster_id": "sandbox", "endpoint": url, "user": "oscar", "password": "sandbox", "ssl": False}
    )
    assert client.health_check().text == "Ok"
    assert json.loads(client.get_cluster_info().text)["version"] == "4.1.0"
    assert "minio_provider" in json.loads(client.get_cluster_config().text)
    assert "cluster" in json.loads(client.get_cluster_status().text)
    assert json.loads(client.list_services().text) == []
    definition = {"name": "plants", "image": "alpine", "cpu": "0.1", "script": 'cat "$INPUT_FILE_PATH"'}
    assert client.create_service(definition).status_code == 201
    with pytest.raises(ValueError, match="already present"):
        client.create_service(definition)
    assert json.loads(client.get_service("plants").text)["cpu"] == "0.1"
    assert client.update_service("plants", definition | {"cpu": "0.2"}).status_code == 204
    assert json.loads(client.get_service("plants").text)["cpu"] == "0.2"
    assert client.run_service("plants", input="hello").text == "hello\n"
    client.run_service("plants", input="hello", output=str(output))
    assert client.run_service("plants", input="hello", async_call=True).status_code == 201
    [name] = json.loads(client.list_jobs("plants").text)["jobs"]
    return str(name)


def end_of_a_service(url: str, job: str) -> None:
    client = Client(
        {"cluster_id": "sandbox", "endpoint": url, "user": "oscar", "password": "sandbox", "ssl": False}
    )
    assert json.loads(client.list_jobs("plants").text)["jobs"][job]["status"] == "Succeeded"
    assert client.get_job_logs("plants", job).text == "hello\n"
    assert client.remove_job("plants", job).status_code == 204
    assert client.remove_all_jobs("plants").status_code == 204
    assert client.remove_service("plants").status_code == 204
    assert json.loads(client.list_services().text) == []


async def test_the_client_creates_invokes_reads_and_deletes(tmp_path: Path) -> None:
    async with SandboxOscar() as oscar:
        name = await asyncio.to_thread(life_of_a_service, oscar.url, tmp_path / "output.txt")
        job = oscar.job(name)
        assert job is not None
        async with asyncio.timeout(60):
            while job.phase != "Succeeded":
                await asyncio.sleep(0.01)
        assert job.event_seen == base64.b64encode(b"hello") + b"\n"
        await asyncio.to_thread(end_of_a_service, oscar.url, name)


async def test_the_client_reads_and_changes_quotas() -> None:
    async with SandboxOscar(Settings(kueue=True)) as oscar:
        refresh = oscar.oidc.grant("alice")

        def use() -> None:
            admin = Client(
                {
                    "cluster_id": "sandbox",
                    "endpoint": oscar.url,
                    "user": "oscar",
                    "password": "sandbox",
                    "ssl": False,
                }
            )
            changed = json.loads(admin.update_user_quota("alice", "500m", "1Gi").text)
            assert changed == json.loads(admin.get_user_quota("alice").text)
            alice = Client(
                {
                    "cluster_id": "sandbox",
                    "endpoint": oscar.url,
                    "refresh_token": refresh,
                    "token_endpoint": f"{oscar.url}/oidc/token",
                    "ssl": False,
                }
            )
            own = json.loads(alice.get_own_quota().text)
            assert own["resources"]["cpu"] == {"max": 500, "used": 0}
            assert own["resources"]["memory"] == {"max": 2**30, "used": 0}

        await asyncio.to_thread(use)


async def test_the_client_refreshes_an_oidc_token_and_invokes_with_it() -> None:
    async with SandboxOscar() as oscar:
        oscar.add_service("plants", 'cat "$INPUT_FILE_PATH"', visibility="public")
        options = {
            "cluster_id": "sandbox",
            "endpoint": oscar.url,
            "refresh_token": oscar.oidc.grant("alice"),
            "token_endpoint": f"{oscar.url}/oidc/token",
            "ssl": False,
        }

        def use() -> str:
            client = Client(options)
            assert len(json.loads(client.list_services().text)) == 1
            return str(client.run_service("plants", input="hello").text)

        assert await asyncio.to_thread(use) == "hello\n"
        assert oscar.oidc.refreshes == 1


async def test_the_client_pages_through_jobs_reads_logs_and_lists_outputs() -> None:
    settings = Settings(simulate=True, supervisor="go")
    async with SandboxOscar(settings) as oscar:
        plants = oscar.add_service("plants", output=[{"storage_provider": "minio", "path": "results/out"}])
        oscar.preload(plants, 100, failed=3)
        oscar.faults.set(Fault(scripts={"aGVsbG8=": 3}))  # the client sends its input as base64

        def use() -> None:
            client = Client(
                {
                    "cluster_id": "sandbox",
                    "endpoint": oscar.url,
                    "user": "oscar",
                    "password": "sandbox",
                    "ssl": False,
                }
            )
            for text in ("hello", "other"):
                assert client.run_service("plants", input=text, async_call=True).status_code == 201
            first = json.loads(client.list_jobs("plants").text)
            second = json.loads(client.list_jobs("plants", first["next_page"]).text)
            assert (len(first["jobs"]), len(second["jobs"]), "next_page" in second) == (70, 32, False)
            jobs = first["jobs"] | second["jobs"]
            failed = [name for name, job in jobs.items() if job["status"] == "Failed"]
            assert len(failed) == 4
            [mine] = [name for name in failed if name in oscar.ledger.created]
            assert "Script exited with code 3" in client.get_job_logs("plants", mine).text
            objects = json.loads(client.get_bucket("results").text)["objects"]
            [good] = oscar.ledger.created.keys() - {mine}
            assert [known["object_name"] for known in objects] == ["out/", f"out/{good}"]
            assert client.remove_all_jobs("plants").status_code == 204
            assert set(json.loads(client.list_jobs("plants").text)["jobs"]) == set(failed)

        await asyncio.to_thread(use)
