"""The log: one line an occurrence, and never a secret in it."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bridge.telemetry import damping
from bridge.telemetry.logging import _PLAIN_TEXT, _SECRET_TEXT, REDACTED, configure, redact_text
from bridge.testing import until

SECRET = "hunter2-S3cr3t"
SERVICE_TOKEN = "0f" * 32


class Log:
    """What was written since the log was configured."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)

    def configure(self, level: str = "info", form: Literal["json", "console"] = "json") -> Any:
        configure(level, form, self._descriptor)
        return structlog.get_logger("bridge.test")

    @property
    def text(self) -> str:
        (handler,) = logging.getLogger().handlers
        assert handler.writer.flush(30)  # type: ignore[attr-defined] # not `handler.flush`: that ends windows
        return self._file.read_text("utf-8")

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def close(self) -> None:
        logging.getLogger().handlers[0].close()
        os.close(self._descriptor)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log = Log(tmp_path / "log")
    yield log
    log.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@dataclass
class Credentials:
    user: str
    password: str


FORMS = pytest.mark.parametrize("form", ["json", "console"])
SECRETS: list[tuple[str, dict[str, Any]]] = [
    ("signed in", {"password": SECRET}),
    ("signed in", {"sasl_plain_password": SECRET}),
    ("signed in", {"refresh_token": SECRET}),
    ("signed in", {"secret": SECRET.encode()}),
    ("signed in", {"tokens": [SECRET, SECRET]}),
    ("request", {"headers": {"Authorization": f"Bearer {SECRET}", "X-Api-Key": SECRET}}),
    ("request", {"headers": [("Authorization", f"Basic {SECRET}")]}),
    ("request", {"deep": {"list": [{"client_secret": {"value": SECRET}}]}}),
    ("request", {"raw": f"Authorization: Bearer {SECRET}".encode()}),
    ("connect", {"url": f"amqp://bridge:{SECRET}@mq.example.org:5671/v"}),
    ("failed", {"error": ValueError(f"wrong password={SECRET}")}),
    ("failed", {"error": {"a": ValueError(f"wrong token: {SECRET}")}}),
    ("failed", {"who": Credentials("bridge", SECRET)}),
    ("failed", {"who": {Credentials("bridge", SECRET).__repr__()}}),
    ("failed", {"body": json.dumps({"name": "plants", "token": SECRET})}),
    (f"OIDC answered {{'access_token': '{SECRET}'}}", {}),
    (f"sent Bearer {SECRET}", {}),
]


@FORMS
@pytest.mark.parametrize(("event", "fields"), SECRETS, ids=range(len(SECRETS)))
def test_no_field_shows_a_secret(
    log: Log, form: Literal["json", "console"], event: str, fields: dict[str, Any]
) -> None:
    log.configure(form=form).warning(event, **fields)
    assert SECRET not in log.text
    assert REDACTED in log.text


def fail_with(secret: str) -> None:
    cause = ValueError(f"bad url https://bridge:{secret}@oscar.example.org")
    raise ExceptionGroup("several", [OSError(f"refused: password='{secret}'")]) from cause


@FORMS
@pytest.mark.parametrize("own", [True, False], ids=["the bridge's", "a library's"])
def test_no_traceback_shows_a_secret(log: Log, form: Literal["json", "console"], own: bool) -> None:
    logger = log.configure(form=form)
    try:
        fail_with(SECRET)
    except ExceptionGroup:
        if own:
            logger.exception("failed")
        else:
            logging.getLogger("aiokafka").exception("failed")
    assert SECRET not in log.text
    assert "Traceback (most recent call last)" in log.text
    assert "refused: password=" in log.text
    assert log.text.count(REDACTED) >= 2


@FORMS
def test_a_librarys_line_shows_no_secret(log: Log, form: Literal["json", "console"]) -> None:
    log.configure(form=form)
    logging.getLogger("aiokafka.conn").warning("SASL failed with %r", {"password": SECRET})
    assert SECRET not in log.text
    assert "SASL failed with" in log.text


@FORMS
def test_what_is_no_secret_is_shown(log: Log, form: Literal["json", "console"]) -> None:
    log.configure(form=form).info(
        "bridge started",
        http="http://127.0.0.1:9464",
        password_file="/run/secrets/oscar",
        token_endpoint="https://aai.example.org/token",
        offsets=[1, 2],
        ratio=0.5,
        token=None,
    )
    assert REDACTED not in log.text
    for shown in ("http://127.0.0.1:9464", "/run/secrets/oscar", "https://aai.example.org/token", "0.5"):
        assert shown in log.text


def test_a_json_line_tells_time_level_logger_event_and_fields(log: Log) -> None:
    logger = log.configure()
    logger.bind(source="uploads").info("source lost", attempts=2, text="two\nlines \udcff")
    logging.getLogger("aiokafka").warning("a %s", "library")
    ours, theirs = log.lines
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {
        "event": "source lost",
        "level": "info",
        "logger": "bridge.test",
        "source": "uploads",
        "attempts": 2,
        "text": "two\nlines \udcff",
    }
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("a library", "warning", "aiokafka")


def test_a_json_line_holds_its_traceback(log: Log) -> None:
    logger = log.configure()
    try:
        int("gone")
    except ValueError:
        logger.exception("failed")
    (line,) = log.lines
    assert line["level"] == "error"
    assert line["exception"].endswith("invalid literal for int() with base 10: 'gone'")
    assert "exc_info" not in line


def test_a_quiet_level_writes_nothing_below_it(log: Log) -> None:
    logger = log.configure("warning")
    logger.info("not told")
    logging.getLogger("elsewhere").info("not told")
    logger.warning("told")
    assert [line["event"] for line in log.lines] == ["told"]


def test_libraries_are_heard_at_info_only_where_the_bridge_has_no_words_of_its_own(log: Log) -> None:
    log.configure("debug")
    for name in ("aiokafka", "asyncio", "aiohttp.access", "elsewhere"):
        logging.getLogger(name).info("said")
    assert [line["logger"] for line in log.lines] == ["elsewhere"]


def test_a_line_that_is_not_written_costs_no_redaction(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = log.configure("info")

    class Costly:
        def __repr__(self) -> str:
            raise AssertionError("a line below the level was rendered")

    logger.debug("offset committed", value=Costly())
    started = time.process_time()
    for number in range(20_000):
        logger.debug("offset committed", source="uploads", offset=number)
    each = (time.process_time() - started) / 20_000
    assert log.text == ""
    assert each < 20e-6  # 0.3 µs on a quiet machine; a written line costs about 100 times that


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("password=hunter2 and more", "password=[redacted] and more"),
        ("PASSWD : hunter2", "PASSWD : [redacted]"),
        ("a passphrase='two words', b=1", "a passphrase='[redacted]', b=1"),
        ('{"token": "a\\"b", "x": 1}', '{"token": "[redacted]", "x": 1}'),
        (
            '"{\\"client_secret\\": \\"a b\\", \\"b\\": 1}"',
            '"{\\"client_secret\\": \\"[redacted]\\", \\"b\\": 1}"',
        ),
        ("{'sasl_plain_password': b'hunter2'}", "{'sasl_plain_password': b'[redacted]'}"),
        ('cut off: {"token":"0123', 'cut off: {"token":"[redacted]'),
        ("Authorization: Bearer abc.def", "Authorization: [redacted]"),
        ("x-amz-signature=ab/c", "x-amz-signature=[redacted]"),
        ("AWS_SECRET_ACCESS_KEY=ab/c", "AWS_SECRET_ACCESS_KEY=[redacted]"),
        ("Bearer token-abc", "Bearer [redacted]"),
        ("basic dTpw, then", "basic [redacted], then"),
        ("amqp://u:p@ss/w@mq:5672/v", "amqp://u:[redacted]@mq:5672/v"),
        ("https://u:12345@host/", "https://u:[redacted]@host/"),
        (f"token {SERVICE_TOKEN} refused", "token [redacted] refused"),
        ("got eyJhbGciOiJSUzI1NiJ9.eyJzdWIi.c2ln now", "got [redacted] now"),
        ("-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----.", "[redacted]."),
        ("-----BEGIN RSA PRIVATE KEY-----\ncut o", "[redacted]"),
    ],
)
def test_a_secret_in_text_is_blanked_and_nothing_else(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted
    assert redact_text(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:9464/metrics",
        "https://host:8080/path?mail=a@b.example",
        "basic authentication failed",
        "the bearer token is refused",
        'WWW-Authenticate: Bearer realm="oscar"',
        "token_endpoint: https://aai.example.org/token",
        "password_file=/run/secrets/oscar",
        '{"token":null,"error":"no such service"}',
        "unexpected token at line 5",
        "uploads/3/1234567890",
        "plants-" + "a2345" * 6 + "ab",
    ],
)
def test_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert redact_text(text) == text


@given(st.from_regex(_PLAIN_TEXT, fullmatch=True))
def test_what_is_taken_for_plain_text_holds_nothing_that_looks_like_a_credential(text: str) -> None:
    assert _SECRET_TEXT.search(text) is None


WORDS = st.sampled_from(["password", "client_secret", "refresh_token", "api_key", "Authorization"])


@given(WORDS, st.text(st.characters(codec="utf-8")))
def test_any_value_of_a_json_or_python_text_is_blanked_from_end_to_end(word: str, middle: str) -> None:
    plain = {"name": "plants", word: f"Zq9x{middle}xKw7"}
    for text in (json.dumps(plain), repr(plain), json.dumps(json.dumps(plain)), json.dumps(plain)[:-2]):
        hidden = redact_text(text)
        assert "plants" in hidden
        assert "Zq9x" not in hidden
        assert "xKw7" not in hidden


PIECES = (
    *("token", "token-", "token=", "password:  ", 'password="', "bearer ", "eyJ-", "eyJaaaaaaaa.", "://a:"),
    *("\\", '"', " ", "a1", "-----BEGIN PRIVATE KEY-----", '\\"token\\": \\"', "token\\\\\\\\"),
)


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    started = time.process_time()
    redact_text(text)
    assert time.process_time() - started < 2  # 0.35 s is the worst of them; a quadratic one takes 7 s or more


def test_a_flood_is_one_line_and_one_more_at_the_end_that_tells_how_many(log: Log) -> None:
    logger = log.configure()
    for number in range(1400):
        logging.getLogger("aiokafka.conn").error("Unable to connect to %s", f"10.0.0.{number}")
        logger.warning("source lost", source="uploads", reason="no answer", reopen_in_seconds=number)
    assert [line["event"] for line in log.lines] == ["Unable to connect to 10.0.0.0", "source lost"]
    logging.getLogger().handlers[0].flush()
    theirs, ours = log.lines[2:]
    assert theirs["event"] == "Unable to connect to 10.0.0.1399"
    assert ours["event"] == "source lost"
    assert theirs["and_more_in_the_last_minute"] == ours["and_more_in_the_last_minute"] == 1399
    assert (ours["reason"], ours["reopen_in_seconds"]) == ("no answer", 1399)


async def test_what_was_held_back_is_told_after_a_minute_though_nothing_else_happens(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damping, "WINDOW_SECONDS", 0.2)
    logger = log.configure()
    for _ in range(3):
        logger.warning("source lost", reason="no answer")
    await until(lambda: len(log.lines) > 1, what="the count is told")
    assert sum(line.get("and_more_in_the_last_minute", 1) for line in log.lines) == 3


async def test_a_secret_is_blanked_in_what_is_held_back_too(log: Log) -> None:
    log.configure()
    for _ in range(2):
        logging.getLogger("aiokafka").error("SASL failed: %s", f"password={SECRET}")
    logging.getLogger().handlers[0].flush()
    assert len(log.lines) == 2
    assert SECRET not in log.text


async def test_a_line_that_can_not_be_made_ends_neither_its_caller_nor_the_log(
    log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise LookupError("no text")

    now = 0.0
    monkeypatch.setattr(damping, "monotonic", lambda: now)  # the window ends when we say so
    monkeypatch.setattr(damping, "WINDOW_SECONDS", 0.1)
    logger = log.configure()
    for _ in range(2):  # the second is held back, and told in the writer's thread
        logger.warning("source lost", reason="x")
        logging.getLogger("elsewhere").warning("%d lines", "no number")
    logger.warning("odd too", odd=Odd())
    handler = logging.getLogger().handlers[0]
    monkeypatch.setattr(handler, "_render", lambda _line: 1 / 0)
    now = 1.0
    told = ""

    def is_told(text: str) -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return text in told

    await until(lambda: is_told("ZeroDivisionError"), what="what is due is tried")
    monkeypatch.undo()
    logger.warning("good")
    await until(lambda: any(line["event"] == "good" for line in log.lines), what="the next line")
    assert is_told("LookupError: no text")
