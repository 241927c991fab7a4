"""What the environment adds to the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from bridge.core.errors import ConfigurationError
from bridge.credentials import BasicAuth
from tests.settings.conftest import MINIMAL, Loader


def password(settings: object) -> str | None:
    auth = settings.clusters["main"].auth  # type: ignore[attr-defined]  # a Settings
    assert isinstance(auth, BasicAuth)
    return None if auth.password is None else auth.password.get_secret_value()


def test_the_environment_goes_over_the_file(load_text: Loader) -> None:
    settings = load_text(environ={"BRIDGE__HTTP__PORT": "9000"}, more="http: {port: 8000}\n")
    assert settings.http.port == 9000


def test_a_part_that_the_file_lacks_is_made(load_text: Loader) -> None:
    settings = load_text(environ={"BRIDGE__SERVICES__PLANTS__LIMITS__CONCURRENCY": "3"})
    assert settings.services["plants"].limits.concurrency == 3


def test_a_key_is_found_without_regard_to_case(load_text: Loader) -> None:
    text = MINIMAL.replace("plants", "Plants").replace("{Plants: {}}", "{Plants: {service: plants}}")
    settings = load_text(text, {"BRIDGE__SERVICES__PLANTS__QUEUE": "7"})
    assert settings.services["Plants"].queue == 7


def test_a_new_key_is_in_lower_case(load_text: Loader) -> None:
    settings = load_text(environ={"BRIDGE__SERVICES__FLOOD__MODE": "run"})
    assert settings.services["flood"].mode == "run"


def test_a_list_and_a_mapping_come_as_yaml(load_text: Loader) -> None:
    environ = {"BRIDGE__SOURCES__UPLOADS__TOPICS": "[a, b]", "BRIDGE__HTTP": "{port: 1, host: '::'}"}
    settings = load_text(environ=environ)
    assert settings.sources["uploads"].topics == ("a", "b")
    assert (settings.http.port, settings.http.host) == (1, "::")


def test_an_inner_variable_goes_over_an_outer_one(load_text: Loader) -> None:
    settings = load_text(environ={"BRIDGE__HTTP__PORT": "2", "BRIDGE__HTTP": "{port: 1}"})
    assert settings.http.port == 2


def test_a_whole_configuration_can_come_from_the_environment(load_text: Loader) -> None:
    settings = load_text(
        "{}",
        {
            "BRIDGE__STATE_DIR": "/tmp",
            "BRIDGE__CLUSTERS__MAIN__ENDPOINT": "https://oscar.example.org",
            "BRIDGE__CLUSTERS__MAIN__AUTH": "{type: oidc-agent, account: egi, socket: /run/agent}",
            "BRIDGE__SERVICES__PLANTS": "{}",
            "BRIDGE__SOURCES__UPLOADS": "{type: kafka, bootstrap_servers: 'k:1', topics: [t], group_id: g}",
            "BRIDGE__ROUTES": "[{from: uploads, to: plants}]",
        },
    )
    assert list(settings.services) == ["plants"]


@pytest.mark.parametrize("secret", ["1234", "[x", "{a: b}", "true", "${NAME}", "a: b", "null"])
def test_a_secret_from_the_environment_is_taken_as_it_is(load_text: Loader, secret: str) -> None:
    assert password(load_text(environ={"BRIDGE__CLUSTERS__MAIN__AUTH__PASSWORD": secret})) == secret


def test_a_secret_from_the_environment_replaces_the_files(load_text: Loader, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    text = MINIMAL.replace('password: "hunter2"', "password_file: /nowhere")
    assert password(load_text(text, {"BRIDGE__CLUSTERS__MAIN__AUTH__PASSWORD": "given"})) == "given"
    settings = load_text(environ={"BRIDGE__CLUSTERS__MAIN__AUTH__PASSWORD_FILE": "password"})
    assert password(settings) is None


def test_a_secret_and_its_file_from_the_environment_are_too_much(load_text: Loader, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    auth = "BRIDGE__CLUSTERS__MAIN__AUTH__PASSWORD"
    with pytest.raises(ConfigurationError, match="but both are given"):
        load_text(environ={auth: "x", f"{auth}_FILE": "password"})


def test_variables_of_others_are_not_looked_at(load_text: Loader) -> None:
    load_text(environ={"BRIDGE_HTTP__PORT": "x", "PATH": "${", "bridge__http__port": "x"})


def test_a_reference_is_replaced_within_a_text(load_text: Loader) -> None:
    text = MINIMAL.replace("https://oscar.example.org", "'https://${HOST}${PATH_AT}'")
    settings = load_text(text, {"HOST": "o.example.org", "PATH_AT": "/oscar"})
    assert settings.clusters["main"].endpoint == "https://o.example.org/oscar"


def test_a_reference_may_stand_for_a_number(load_text: Loader) -> None:
    assert load_text(environ={"PORT": "9000"}, more="http: {port: '${PORT}'}\n").http.port == 9000


def test_what_is_put_in_is_not_looked_at_again(load_text: Loader) -> None:
    text = MINIMAL.replace('"hunter2"', '"$${A}${B}$"')
    assert password(load_text(text, {"B": "${C}"})) == "${A}${C}$"


def test_an_expression_with_a_secret_in_it_is_not_shown(load_text: Loader) -> None:
    text = MINIMAL.replace("to: plants", 'to: plants, when: "data.key == ${TOKEN}"')
    with pytest.raises(ConfigurationError) as raised:
        load_text(text, {"TOKEN": "hunter2xyz"})
    assert "hunter2xyz" not in str(raised.value)
    assert "routes[0].when: not an expression" in str(raised.value)


def test_secrets_never_appear(load_text: Loader) -> None:
    settings = load_text(MINIMAL.replace("hunter2", "${SECRET}"), {"SECRET": "swordfish"})
    assert password(settings) == "swordfish"
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "swordfish" not in shown
    auth = settings.clusters["main"].auth
    assert isinstance(auth, BasicAuth)
    assert isinstance(auth.password, SecretStr)


@pytest.mark.parametrize("levels", [31, 100, 20_000])
def test_a_variable_that_names_a_key_too_deep_is_a_mistake_told_in_a_line(
    load_text: Loader, levels: int
) -> None:
    name = "BRIDGE__" + "__".join(["A"] * levels)
    with pytest.raises(ConfigurationError) as caught:
        load_text(environ={name: "1"})
    (mistake,) = caught.value.mistakes
    assert f"names a key {levels} levels deep" in mistake.message
    assert len(str(mistake)) < 300


def test_a_variable_as_deep_as_a_key_may_be_is_read(load_text: Loader) -> None:
    deep = {"BRIDGE__" + "__".join(["A"] * 30): "1", "BRIDGE__HTTP": "[" * 40 + "]" * 40}
    with pytest.raises(ConfigurationError) as caught:
        load_text(environ=deep)
    assert {mistake.key for mistake in caught.value.mistakes} == {"a", "http"}
