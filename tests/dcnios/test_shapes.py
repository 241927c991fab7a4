"""What looks like a file of DCNiOS gives a configuration that can be used, or lines that tell why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.errors import ConfigurationError
from bridge.dcnios.importing import import_file
from bridge.dcnios.saving import save
from bridge.settings import load
from bridge.settings.document import read
from tests.dcnios.conftest import bring, untold

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**12),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)
TEXT = st.sampled_from(
    ["x", "${HOME}", "a b", "x: #y", "'", '"', "\\", "é✓", "$${", "-", "~", "null", "1", "yes"]
)
SECRET = st.sampled_from(["swordfish", "swordfish: #${X} '\"", " swordfish é✓\\"])
NAME = st.sampled_from(["a", "ñ & x", "a" * 80, "1", "on", "ä", "✓", "-"])
SECONDS = st.sampled_from([1, 2, "3", 0.5, 7, 0, 10**9])
COUNT = st.sampled_from([1, "10", 60])


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


COMPONENTS = st.lists(
    st.fixed_dictionaries(
        {"name": one_of("InvokeOSCAR", "GetFile", "GetSQS", "ConsumeAMQP", "ConsumeKafka_2_6", "Other")},
        optional={"seconds": SECONDS, "node": one_of("ALL", "PRIMARY", "(ALL | PRIMARY)")},
    ),
    max_size=2,
)
ALTERATIONS = st.lists(
    st.fixed_dictionaries(
        {"action": one_of("Merge", "Encode", "Decode"), "maxMessages": COUNT, "windowSeconds": COUNT},
        optional={"Encoding": one_of("base64", "hex", "base32")},
    ),
    max_size=3,
)
STORE = st.fixed_dictionaries(
    {
        "Truststore_Filename": one_of("a.p12", "/b/a.p12", "c d.jks", "secrets", ".."),
        "Truststore_Password": SECRET,
    },
    optional={
        "Truststore_Type": one_of("JKS", "PKCS12"),
        "Keystore_Filename": one_of("k.jks", "bridge.yaml"),
        "Keystore_Type": one_of("JKS", "PKCS12"),
        "Keystore_Password": SECRET,
    },
)
REGION = {"AWS_DEFAULT_REGION": one_of("us-east-1")}
LOGIN = {"AWS_ACCESS_KEY_ID": TEXT, "AWS_SECRET_ACCESS_KEY": SECRET}
FOLDERS = [
    "/in",
    "/in/ /more -r",
    "/in --auth oidc",
    "--auth x509 /in --x509-trust path",
    "/in --x509-trust any --user u --password p",
    "/in --x509-proxy ~/proxy --auth x509",
    "/a /a/b -r",
    "in",
]
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dCache": (
        {"endpoint": one_of("https://dcache.example.org/api/v1", "http://dcache.example.org"), "user": TEXT}
        | {"password": SECRET, "folder": st.sampled_from(FOLDERS), "statefile": TEXT},
        {},
    ),
    "Kafka": (
        {
            "bootstrap_servers": one_of("kafka:9092", "a:1,b:2"),
            "topic": one_of("t", "a.b", "a.*", "(?i)x", "a b"),
        }
        | {"group_id": one_of("g", 1), "sasl_username": TEXT, "sasl_password": SECRET},
        {
            "security_protocol": one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
            "sasl_mechanism": one_of("PLAIN", "SCRAM-SHA-256"),
            "separate_by_key": one_of("true", "false", True),
            "message_demarcator": TEXT,
            "ssl_context": STORE,
        },
    ),
    "GetSQS": ({"queue_name": one_of("q", "q.fifo"), **REGION}, LOGIN),
    "GetS3": ({"AWS_S3_BUCKET": one_of("b", "c"), **REGION}, LOGIN),
    "RUCIO": (
        {"host": one_of("mq"), "port": one_of(5671, "5671"), "virtual_host": TEXT, "password": SECRET}
        | {"queue_name": TEXT, "service_filter": TEXT, "ssl_client_auth": TEXT},
        {"ssl_context": STORE, "user": TEXT},
    ),
    "OSCAR": (
        {
            "endpoint": one_of("https://oscar.example.org", "http://o/"),
            "service": one_of("s", "t"),
            "token": SECRET,
        },
        {"user": TEXT, "password": SECRET},
    ),
    "PutS3": ({}, {}),
    "generic": ({"file": TEXT}, {"variables": st.just({"a": "b"})}),
}
ALIASES = {"dCache": "dcache", "OSCAR": "oscar", "GetSQS": "SQS", "GetS3": "S3"}
DESTINATIONS = ("OSCAR", "PutS3")


@st.composite
def files(draw: st.DrawFn) -> Any:
    """A file of any layout, or of several at once, which DCNiOS would take."""
    nifi: dict[str, Any] = {"endpoint": "https://nifi", "user": "u", "password": draw(SECRET)}
    ends: tuple[list[str], list[str]] = ([], [])
    for kind in [*draw(st.lists(st.sampled_from(sorted(KINDS)), max_size=3, unique=True)), "Kafka", "OSCAR"]:
        room = "Destination" if kind in DESTINATIONS else "Source"
        holder = nifi.setdefault(room, {}) if kind != "generic" and draw(st.booleans()) else nifi
        required, optional = KINDS[kind]
        more = {"components": COMPONENTS, "alterations": ALTERATIONS}
        one = st.fixed_dictionaries(required, optional={**optional, **more})
        for element in draw(st.lists(one, min_size=1, max_size=2)):
            name = draw(NAME)
            name += str(len(name)) * sum(each.startswith(name) for each in [*ends[0], *ends[1]])
            ends[kind in DESTINATIONS].append(name)
            called = draw(st.sampled_from([kind, kind, ALIASES.get(kind, kind)]))
            holder.setdefault(called, []).append({"name": name, **element})
    source, destination = (st.sampled_from(each) for each in ends)
    nifi["connection"] = [{"from": ends[0][-1], "to": ends[1][-1]}]
    nifi["connection"] += draw(
        st.lists(st.fixed_dictionaries({"from": source, "to": destination}), max_size=8)
    )
    return {"nifi": nifi}


def holders(content: Any) -> Iterator[Any]:
    """Every mapping and list in it."""
    if isinstance(content, (dict, list)):
        yield content
        for inner in content.values() if isinstance(content, dict) else content:
            yield from holders(inner)


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """The same with up to three values that are something else, and some that are missing or too many."""
    content = deepcopy(draw(files()))
    for _ in range(draw(st.integers(1, 3))):
        inner = [each for each in holders(content) if each and each is not content]
        holder = draw(st.sampled_from(inner or [content]))
        at = draw(
            st.sampled_from(sorted(holder, key=str) if isinstance(holder, dict) else range(len(holder)))
        )
        if draw(st.integers(0, 3)):
            holder[at] = draw(ODD)
        elif isinstance(holder, dict) and draw(st.booleans()):
            holder[draw(st.sampled_from(["more", "Kafka", "Source", "name", "token"]))] = draw(ODD)
        else:
            del holder[at]
    return content


def usable(content: Any, nodes: int) -> bool:
    """Import it; whether that made a configuration. Fail when it neither did nor told why, with the place."""
    with TemporaryDirectory() as name:
        path = Path(name) / "dcnios.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        made = Path(name) / "made"
        try:
            imported = import_file(path, nodes=nodes)
        except ConfigurationError as error:
            told = [str(mistake) for mistake in error.mistakes]
        else:
            save(imported, made, force=False)
            bring(made)
            load(made / "bridge.yaml", {})
            said = "\n".join(str(remark) for remark in imported.remarks)
            assert untold(read(path, []), said) == []
            assert "swordfish" not in said + imported.configuration
            return True
        assert told
        for line in told:
            assert re.match(rf"{re.escape(str(path))}:\d+:\d+: \S", line)
        return False


@settings(max_examples=60, deadline=None)
@given(files(), st.integers(1, 4))
def test_what_dcnios_takes_can_be_used_or_there_is_a_line_that_says_why_not(content: Any, nodes: int) -> None:
    usable(content, nodes)


@settings(max_examples=60, deadline=None)
@given(spoilt())
def test_what_is_no_such_file_after_all_is_a_line_too(content: Any) -> None:
    usable(content, 1)
