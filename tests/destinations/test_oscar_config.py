"""What the configuration of clusters and services takes, and what it says to what it does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import ValidationError

from bridge.credentials import EGI_TOKEN_ENDPOINT, OidcAuth
from bridge.destinations.oscar.config import ClusterConfig, ServiceConfig

BASIC = {"type": "basic", "username": "oscar", "password": "very-secret"}
PASSWORD_FILE = str(Path(__file__).parents[1] / "settings" / "broken" / "password")


def cluster(endpoint: str = "https://oscar.example.org", auth: Any = BASIC, **more: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"endpoint": endpoint, "auth": auth, **more})


def mistake(**more: Any) -> str:
    with pytest.raises(ValidationError) as raised:
        cluster(**more)
    return "\n".join(error["msg"] for error in raised.value.errors())


def test_a_path_in_front_is_kept_and_the_last_slash_is_not() -> None:
    assert cluster("https://portal.example.org/oscar/").endpoint == "https://portal.example.org/oscar"


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("oscar.example.org", "expected a URL such as"),
        ("ftp://oscar.example.org", "expected a URL such as"),
        ("https://", "expected a URL such as"),
        ("https://oscar.example.org:port", "expected a URL such as"),
        ("https://oscar.example.org/?a=b", "without `?query`"),
        ("https://me:word@oscar.example.org", "without credentials: they belong under `auth`"),
    ],
)
def test_an_endpoint_that_is_none_is_told(endpoint: str, said: str) -> None:
    assert said in mistake(endpoint=endpoint)


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        (
            {"type": "basic", "username": "oscar"},
            "one of `password` and `password_file`, but neither is given",
        ),
        (
            {**BASIC, "password_file": PASSWORD_FILE},
            "one of `password` and `password_file`, but both are given",
        ),
        ({"type": "service-token"}, "one of `token` and `token_file`, but neither is given"),
        ({"type": "oidc", "client_id": "c"}, "one of `refresh_token` and `refresh_token_file`, but neither"),
        (
            {
                "type": "oidc",
                "client_id": "c",
                "refresh_token": "r",
                "client_secret": "s",
                "client_secret_file": PASSWORD_FILE,
            },
            "at most one of `client_secret` and `client_secret_file`",
        ),
        ({"type": "basic", "username": "oscar", "password_file": "/none/such"}, "expected a readable file"),
        ({"type": "kerberos"}, "expected tags: 'basic', 'service-token', 'oidc', 'oidc-agent'"),
    ],
)
def test_credentials_that_do_not_fit_together_are_told(auth: dict[str, Any], said: str) -> None:
    assert said in mistake(auth=auth)


def test_oidc_knows_the_token_endpoint_of_egi() -> None:
    auth = cluster(auth={"type": "oidc", "refresh_token": "r", "client_id": "c"}).auth
    assert isinstance(auth, OidcAuth)
    assert auth.token_endpoint == EGI_TOKEN_ENDPOINT


def test_the_agents_socket_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"type": "oidc-agent", "account": "egi"}
    monkeypatch.delenv("OIDC_SOCK", raising=False)
    assert "OIDC_SOCK is not set" in mistake(auth=agent)
    monkeypatch.setenv("OIDC_SOCK", "/run/agent.sock")
    assert getattr(cluster(auth=agent).auth, "socket") == Path("/run/agent.sock")  # noqa: B009 - of a union


def test_secrets_are_shown_nowhere() -> None:
    assert "very-secret" not in repr(cluster()) + str(cluster().model_dump())


def test_authorities_are_read_when_the_bridge_starts(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    assert "expected certificates in PEM" in mistake(tls={"ca_file": tmp_path / "empty.pem"})
    assert "expected files with certificates in PEM" in mistake(tls={"ca_path": tmp_path})
    trustme.CA().cert_pem.write_to_path(tmp_path / "ours.pem")
    both = {"ca_file": tmp_path / "ours.pem", "ca_path": tmp_path}
    assert cluster(tls=both).tls.context().cert_store_stats()["x509_ca"] == 1
    assert "mean nothing with `verify: false`" in mistake(tls={**both, "verify": False})


def test_the_limit_on_an_event_is_what_a_job_starts_with() -> None:
    assert ServiceConfig(cluster="main").event_bytes == 131_065
    assert ServiceConfig(cluster="main", interlink=True).event_bytes == 98_298
    assert ServiceConfig(cluster="main", max_event_bytes=1000).event_bytes == 1000
    with pytest.raises(ValidationError, match="at most 131065: Linux starts no job with more"):
        ServiceConfig(cluster="main", max_event_bytes=131_066)
    with pytest.raises(ValidationError, match="at most 98298: interLink"):
        ServiceConfig(cluster="main", interlink=True, max_event_bytes=98_299)


def test_idempotent_is_for_runs() -> None:
    with pytest.raises(ValidationError, match="`idempotent` is for `mode: run`"):
        ServiceConfig(cluster="main", idempotent=True)
    assert ServiceConfig(cluster="main", mode="run", idempotent=True).idempotent


def test_an_offloaded_service_has_no_run() -> None:
    with pytest.raises(ValidationError, match="OSCAR makes no Knative service"):
        ServiceConfig(cluster="main", mode="run", interlink=True)


def test_a_service_has_a_name_that_oscar_can_have() -> None:
    for name in ("Plants", "plants/..", "-plants", "p" * 64, ""):
        with pytest.raises(ValidationError):
            ServiceConfig(cluster="main", service=name)
