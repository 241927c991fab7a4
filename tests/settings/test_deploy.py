"""What is in `deploy/` fits the bridge: its configuration, its paths, its metrics, its patience."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from bridge.cli import main
from bridge.settings import Settings, load
from bridge.settings.models import Settings as Model
from bridge.telemetry.metrics import Metrics
from bridge.values import duration
from bridge.web import HttpConfig, serve
from tests.settings.test_examples import with_its_files

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DRAIN_SECONDS = Model.model_fields["drain_seconds"].default
TO_CLOSE = 10
"""Seconds that commits and closing may take after the drain."""
SECRETS = "/etc/oscar-bridge/secrets"


UNITS = ["oscar-bridge.service", "oscar-bridge@.service"]


def manifest(name: str = "kubernetes.yaml") -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def settings_of(unit: str) -> dict[str, list[str]]:
    """What a unit sets, by name; comments are left out."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / unit).read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def pod() -> dict[str, Any]:
    return dict(manifest()["Deployment"]["spec"]["template"]["spec"])


def bridge_container() -> dict[str, Any]:
    (container,) = pod()["containers"]
    return dict(container)


def manifest_settings(tmp_path: Path) -> Settings:
    text = manifest()["ConfigMap"]["data"]["bridge.yaml"]
    names = re.findall(r"_file: secrets/([\w-]+)", text)
    assert names, "its secrets are files"
    (tmp_path / "secrets").mkdir()
    for name in names:
        (tmp_path / "secrets" / name).write_text("swordfish\n")
    (tmp_path / "bridge.yaml").write_text(text)
    return load(tmp_path / "bridge.yaml", {})


def test_the_manifests_configuration_loads_and_fits_the_pod(tmp_path: Path) -> None:
    settings = manifest_settings(tmp_path)
    assert settings.warnings == ()
    assert settings.http.host == "0.0.0.0", "the kubelet does not ask on loopback"
    mounts = {mount["mountPath"]: mount for mount in bridge_container()["volumeMounts"]}
    assert settings.state_dir.is_relative_to("/var/lib/oscar-bridge")
    assert mounts["/var/lib/oscar-bridge"]["name"] == "state"
    assert SECRETS in mounts, "relative paths begin at /etc/oscar-bridge/bridge.yaml"
    assert mounts["/etc/oscar-bridge/bridge.yaml"]["subPath"] in manifest()["ConfigMap"]["data"]
    assert {volume["name"] for volume in pod()["volumes"]} == {mount["name"] for mount in mounts.values()}


async def test_the_probes_ask_what_the_bridge_answers(tmp_path: Path) -> None:
    container = bridge_container()
    (port,) = container["ports"]
    settings = manifest_settings(tmp_path)
    assert port["containerPort"] == settings.http.port
    annotations = manifest()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(settings.http.port)
    probes = {
        kind: container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    async with (
        serve(HttpConfig(port=0), Metrics().registry, list, lambda _: asyncio.sleep(0, {})) as url,
        aiohttp.ClientSession() as session,
    ):
        for probe in probes.values():
            assert probe["port"] == port["name"]
            async with session.get(url + probe["path"]) as answer:
                assert answer.status == 200
    assert probes["livenessProbe"]["path"] == "/livez", (
        "an OSCAR that is down is no reason to kill the bridge"
    )


def test_there_is_one_daemon_and_it_runs_as_the_images_user() -> None:
    spec = manifest()["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
    user = f"{pod()['securityContext']['runAsUser']}:{pod()['securityContext']['runAsGroup']}"
    assert f"USER {user}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert pod()["securityContext"]["fsGroup"] == 10001, "secrets and the volume are readable by it"


def test_each_way_to_run_it_waits_for_the_drain() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    for patience in (
        pod()["terminationGracePeriodSeconds"],
        duration(compose["services"]["bridge"]["stop_grace_period"]),
        *(int(settings_of(unit)["TimeoutStopSec"][0]) for unit in UNITS),
    ):
        assert patience >= DRAIN_SECONDS + TO_CLOSE


def test_each_way_to_run_it_gives_a_command_line_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    started = [settings_of(unit)["ExecStart"][0].split()[1:] for unit in UNITS]
    for arguments in (bridge_container()["args"], *started):
        assert main([*arguments[:-1], "/nonexistent/bridge.yaml"]) == 2
        assert "can't read the configuration file" in capsys.readouterr().err


def test_bridges_beside_each_other_share_no_state_and_differ_in_nothing_else() -> None:
    one, several = (settings_of(unit) for unit in UNITS)
    differing = {name for name in one if one[name] != several[name]}
    assert differing == {"Description", "Documentation", "ExecStart", "StateDirectory"}
    assert one.keys() == several.keys()
    assert all("%i" in several[name][0] for name in differing)

    deployment = manifest()["Deployment"]["spec"]
    pods = manifest("kubernetes-statefulset.yaml")
    spec = pods["StatefulSet"]["spec"]
    assert spec["serviceName"] == pods["Service"]["metadata"]["name"]
    assert pods["Service"]["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    (volume,) = spec["volumeClaimTemplates"]
    assert volume["spec"] == manifest()["PersistentVolumeClaim"]["spec"]
    volumes = deployment["template"]["spec"]["volumes"]
    shared = [each for each in volumes if each["name"] != volume["metadata"]["name"]]
    assert len(shared) == len(volumes) - 1
    deployment["template"]["spec"]["volumes"] = shared
    assert spec["template"] == deployment["template"]


def test_the_line_that_makes_configurations_of_several_bridges_does(tmp_path: Path) -> None:
    """The one in the template unit's comment, as a person copies it."""
    comment = re.findall(r"^#   (.*)$", (DEPLOY / UNITS[1]).read_text(encoding="utf-8"), re.MULTILINE)
    script = "\n".join(comment[: comment.index("done") + 1])
    assert "install -m 0640 -g oscar-bridge /dev/stdin /etc/oscar-bridge/$n.yaml" in script
    script = script.replace(
        "install -m 0640 -g oscar-bridge /dev/stdin /etc/oscar-bridge/$n.yaml", "cat > $n.yaml"
    )
    text = (ROOT / "config" / "kafka.yaml").read_text(encoding="utf-8")
    (tmp_path / "bridge.yaml").write_text(text, encoding="utf-8")
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True, timeout=30)
    made = [yaml.safe_load((tmp_path / f"{number}.yaml").read_text(encoding="utf-8")) for number in (1, 2, 3)]
    assert [each["http"]["port"] for each in made] == [9464, 9465, 9466]
    assert [each["state_dir"] for each in made] == [f"/var/lib/oscar-bridge-{number}" for number in (1, 2, 3)]
    assert all(
        {**each, "http": None, "state_dir": None} == {**made[0], "http": None, "state_dir": None}
        for each in made
    )


def test_compose_gives_the_container_every_file_that_its_configuration_names(tmp_path: Path) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    service = compose["services"]["bridge"]
    mounts = dict(volume.split(":")[1::-1] for volume in service["volumes"])
    text = (DEPLOY / mounts["/etc/oscar-bridge/bridge.yaml"]).read_text(encoding="utf-8")
    assert set(service["secrets"]) == set(compose["secrets"])
    there = {*mounts, *(f"/run/secrets/{name}" for name in service["secrets"])}
    named = set(re.findall(r"(?:_file|_path|state_dir): (/[^\s,}]+)", text))
    assert named <= there
    here = tmp_path / "bridge.yaml"
    here.write_text(with_its_files(text, tmp_path / "root"), encoding="utf-8")
    assert load(here, service["environment"]).http.host == "0.0.0.0"


def test_monitoring_mounts_what_there_is_and_scrapes_the_bridge_of_compose() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    monitoring = yaml.safe_load((DEPLOY / "monitoring.yaml").read_text(encoding="utf-8"))
    inside = {}
    for service in monitoring["services"].values():
        for source, target in (volume.split(":")[:2] for volume in service["volumes"]):
            inside[target] = source
            assert (DEPLOY / source).is_file() if source.startswith("./") else source in monitoring["volumes"]
        assert {each["source"] for each in service["configs"]} <= monitoring["configs"].keys()
    texts = {name: yaml.safe_load(each["content"]) for name, each in monitoring["configs"].items()}
    (scraped,) = texts["prometheus"]["scrape_configs"]
    (target,) = scraped["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert name in compose["services"]
    assert int(port) == HttpConfig().port
    assert inside["/etc/prometheus/" + texts["prometheus"]["rule_files"][0]] == "./prometheus-rules.yaml"
    (provider,) = texts["dashboards"]["providers"]
    dashboards = provider["options"]["path"]
    assert inside[f"{dashboards}/oscar-event-bridge.json"] == "./grafana-dashboard.json"
    (datasource,) = texts["datasources"]["datasources"]
    assert datasource["url"] == "http://prometheus:9090"
    assert "prometheus" in monitoring["services"]
