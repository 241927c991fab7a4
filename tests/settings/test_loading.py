"""From a file to settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core.errors import ConfigurationError
from bridge.credentials import BasicAuth
from bridge.settings import Settings, load
from tests.settings.conftest import MINIMAL, Loader


def test_the_minimal_file_has_every_default(load_text: Loader) -> None:
    loaded = load_text()
    assert loaded.state_dir == Path("/var/lib/oscar-bridge")
    assert (loaded.http.host, loaded.http.port) == ("127.0.0.1", 9464)
    assert (loaded.log.level, loaded.log.format) == ("info", "json")
    assert loaded.drain_seconds == 25.0
    assert loaded.warnings == ()


def test_names_are_made_of_the_keys(load_text: Loader) -> None:
    loaded = load_text()
    assert loaded.services["plants"].service == "plants"
    assert loaded.services["plants"].cluster == "main"
    assert loaded.sources["uploads"].identity == "uploads"


def test_names_that_are_given_stay(load_text: Loader) -> None:
    loaded = load_text(
        MINIMAL.replace("plants: {}", "plants: {service: plant-classification}").replace(
            "type: kafka", "type: kafka, identity: old"
        )
    )
    assert loaded.services["plants"].service == "plant-classification"
    assert loaded.sources["uploads"].identity == "old"


def test_what_the_design_shows_of_this_issue_loads(load_text: Loader, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    loaded = load_text(f"""
state_dir: /var/lib/oscar-bridge        # the store. Must be writable, or the start fails
http: {{host: 127.0.0.1, port: 9464}}
log: {{level: info, format: json}}
drain_seconds: 25
clusters:
  main:
    endpoint: https://oscar.example.org
    auth: {{type: basic, username: oscar, password_file: {secret}}}
    tls: {{verify: true}}
  token: {{endpoint: https://oscar.example.org, auth: {{type: service-token, token_file: {secret}}}}}
  oidc:
    endpoint: https://oscar.example.org
    auth: {{type: oidc, refresh_token_file: {secret}, token_endpoint: https://idp.example.org, client_id: x}}
  agent: {{endpoint: https://oscar.example.org, auth: {{type: oidc-agent, account: x, socket: /run/agent}}}}
services:
  plants:                               # the lane
    cluster: main
    service: plant-classification       # OSCAR's name; default: the key
    mode: job                           # or run
    owner: null                         # where one name has several owners
    interlink: false
    queue: 1000
    timeout_seconds: 30
    limits: {{concurrency: 16, rate: 10/s}}
    retry: {{give_up_after: 24h, max_attempts: 8, max_backoff: 60s}}
    max_event_bytes: 131065
    payload: auto
sources:
  uploads: {{type: kafka, bootstrap_servers: "kafka:9092", topics: [uploads], group_id: oscar,
             auto_offset_reset: earliest, max_in_flight: 2000, identity: uploads, trusted: false}}
routes:
  - {{from: uploads, when: 'data.size > 0 && subject.endsWith(".nc")', to: plants}}
  - {{from: uploads, to: 'data.payload.custom_metadata["oscar-service"]', allow: [plants]}}
""")
    assert loaded.services["plants"].limits.rate == 10.0
    assert loaded.services["plants"].retry.give_up_after == 86400.0
    assert loaded.routes[0].from_ == "uploads"
    assert loaded.routes[1].allow == ("plants",)


def test_a_service_that_no_route_uses_is_a_warning(load_text: Loader) -> None:
    (warning,) = load_text(MINIMAL.replace("{plants: {}}", "{plants: {}, flood: {}}")).warnings
    assert warning.endswith("bridge.yaml:4:24: services.flood: no route uses this service")


def test_loading_gives_each_mistake_one_entry_with_its_key(load_text: Loader) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_text(MINIMAL.replace("to: plants", "to: plant"), more="htpp: {}\nlog: {level: loud}\n")
    assert [mistake.key for mistake in raised.value.mistakes] == ["routes[0].to", "htpp", "log.level"]


def test_no_secret_is_kept_in_what_an_error_came_from(load_text: Loader) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_text(more="htpp: {}\n")
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_no_client_of_a_broker_is_loaded() -> None:
    code = "import sys, bridge.settings; print([name for name in ['aiokafka'] if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


_KAFKA_ALONE = """\
state_dir: state
clusters: {main: {endpoint: "http://oscar", auth: {type: basic, username: oscar, password: secret}}}
services: {plants: {cluster: main}}
sources: {uploads: {type: kafka, bootstrap_servers: "kafka:9092", topics: [uploads], group_id: bridge}}
routes: [{from: uploads, to: plants}]
"""
_ELSEWHERE = {
    "cel.cel",
    "cramjam.cramjam",
    "frozenlist._frozenlist",
    "aiobotocore",
    "botocore",
    "aiormq",
    "pamqp",
    "moto",
    "cryptography",
    "gssapi",
    "rich",
}
"""Of the packages that a bridge may need, what one with Kafka alone and no expression does not."""


def test_a_bridge_loads_nothing_that_its_configuration_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "bridge.yaml").write_text(_KAFKA_ALONE, encoding="utf-8")
    code = f"""
import sys
from bridge.cli import memory
memory.spare()  # as `run` has it
from pathlib import Path
from bridge import app
from bridge.settings import load
load(Path("bridge.yaml"), {{}})
import bridge.sources.kafka.source
print(sorted(name for name in {sorted(_ELSEWHERE)} if sys.modules.get(name)))
print("aiokafka" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path
    )
    assert done.stdout.splitlines() == ["[]", "True"]


def test_what_reads_compressed_records_is_loaded_by_the_first_of_them() -> None:
    code = """
import sys
from bridge.cli import memory
memory.spare()
from aiokafka import codec
print(codec.has_lz4(), "cramjam.cramjam" in sys.modules)
for name in ("snappy", "lz4", "zstd"):
    print(getattr(codec, f"{name}_decode")(getattr(codec, f"{name}_encode")(b"leaf")))
print("cramjam.cramjam" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["True False", *3 * ["b'leaf'"], "True"]


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = sorted(
    {"type", "from", "to", "when", "allow", "auth", "password", "main", "plants", "uploads", "service"}
    | {"cluster", "identity", "owner", "tls", "limits"}
    | set(Settings.model_fields)
)
_shaped = st.recursive(
    _values | st.sampled_from(["kafka", "basic", "oidc", "main", "plants", "uploads", "data.x > 1", "${X}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=6),
    max_leaves=25,
)


_CONFIGURATION_ERROR_ONLY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=100,
)


def what_is_said(path: Path, environ: dict[str, str]) -> str:
    """Load, and give the message of the only error there may be."""
    try:
        load(path, environ)
    except ConfigurationError as error:
        return str(error)
    return "no mistake"


@_CONFIGURATION_ERROR_ONLY
@given(
    _shaped,
    st.sampled_from(["{0}", "clusters: {0}\nservices: {0}\nsources: {0}\nroutes: {0}", "routes: [{0}]"]),
)
def test_any_yaml_loads_or_is_a_configuration_error(tmp_path: Path, value: object, form: str) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(form.format(json.dumps(value)), encoding="utf-8")
    said = what_is_said(path, {"X": "swordfish"})
    assert said
    assert "swordfish" not in said


@_CONFIGURATION_ERROR_ONLY
@given(st.binary(max_size=60))
def test_any_bytes_load_or_are_a_configuration_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_bytes(raw)
    assert what_is_said(path, {})


_names = st.builds(
    "BRIDGE__{}{}".format,
    st.sampled_from(["", "SOURCES__", "SOURCES__UPLOADS__", "CLUSTERS__MAIN__AUTH__", "ROUTES__0__"]),
    st.sampled_from(_KEYS).map(str.upper),
)
_texts = ["", "x", "[a, b]", "{a: 1}", "[", "[]: x", "]", "{a: &a [*a]}", "[x]\ny: 1", "\x00", "\udcff", "{"]


@_CONFIGURATION_ERROR_ONLY
@given(st.dictionaries(_names, st.sampled_from(_texts), max_size=4))
def test_any_environment_loads_or_is_a_configuration_error(tmp_path: Path, environ: dict[str, str]) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    assert what_is_said(path, environ)


@pytest.mark.parametrize(
    ("auth", "told"),
    [
        ("{type: basic, basic: 1, password: a}", {"auth.basic: unknown key", "auth.username: missing"}),
        ("{basic: 1}", {"auth.type: missing"}),
        ("{type: basic, username: true, password: [true]}", {"auth.username: e", "auth.password: e"}),
    ],
)
def test_a_key_called_like_a_type_is_no_way_to_it(load_text: Loader, auth: str, told: set[str]) -> None:
    text = MINIMAL.replace('{type: basic, username: oscar, password: "hunter2"}', auth)
    with pytest.raises(ConfigurationError) as caught:
        load_text(text)
    said = [f"{mistake.key}: {mistake.message}" for mistake in caught.value.mistakes]
    assert len(said) == len(told)
    assert all(any(f"clusters.main.{each}" in line for line in said) for each in told)


def test_true_in_place_of_a_size_is_one_mistake(load_text: Loader) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_text(more="store: {max_bytes: true}\nhttp: {port: true}\n")
    assert [mistake.key for mistake in caught.value.mistakes] == ["store.max_bytes", "http.port"]


def test_a_relative_path_begins_at_the_configuration_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `dead-letters` from another directory would look into another store, and make it."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "password").write_text("hunter2\n")
    text = MINIMAL.replace("/var/lib/oscar-bridge", "state").replace(
        'password: "hunter2"', "password_file: password"
    )
    (tmp_path / "etc" / "bridge.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    loaded = load(Path("etc/bridge.yaml"), {})
    assert loaded.state_dir == tmp_path / "etc" / "state"
    auth = loaded.clusters["main"].auth
    assert isinstance(auth, BasicAuth)
    assert auth.password_file == tmp_path / "etc" / "password"
    elsewhere = load(Path("etc/bridge.yaml"), {"BRIDGE__STATE_DIR": "elsewhere"})
    assert elsewhere.state_dir == tmp_path / "etc" / "elsewhere"


def test_a_proxy_that_cannot_be_used_stops_the_start(load_text: Loader) -> None:
    with pytest.raises(ConfigurationError) as told:
        load_text(environ={"ALL_PROXY": "socks5://me:word@proxy:1080"})
    assert str(told.value).startswith("environment variable ALL_PROXY: expected http://HOST:PORT")
    assert "word" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hunter2\nsecond\n", "expected a secret, which is one line, but {file} has 2 lines"),
        (b" \r\n", "expected a secret, but {file} is empty"),
        (b"\xffhunter2", "expected a secret, but {file} is not text in UTF-8"),
    ],
)
def test_a_file_that_holds_no_secret_is_a_mistake_that_does_not_show_it(
    load_text: Loader, tmp_path: Path, content: bytes, told: str
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    text = MINIMAL.replace('password: "hunter2"', "password_file: password")
    with pytest.raises(ConfigurationError) as caught:
        load_text(text)
    (mistake,) = caught.value.mistakes
    assert (mistake.key, mistake.message) == ("clusters.main.auth.password_file", told.format(file=file))
    file.write_bytes(b"\xef\xbb\xbfhunter2\r\n")
    assert load_text(text).clusters["main"].auth.type == "basic"
