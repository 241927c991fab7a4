"""Structured log lines: JSON for machines, a console form for a person; secrets never in either."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Literal, NoReturn

import structlog

from bridge.telemetry.damping import Damper, Line, likeness_of_a_librarys, likeness_of_our_own
from bridge.telemetry.writer import Stream, Writer

STANDARD_ERROR = 2
FLUSH_SECONDS = 2.0
"""How long the end of the process waits for the last lines to be written."""
_AGAIN_SECONDS = 0.1
REDACTED = "[redacted]"
EXCERPT_CHARACTERS = 500
_MOST_REMEMBERED = 512
"""Short texts, names of fields, and fields whose redaction is remembered."""

_TELLTALE = (
    r"(?:pass(?:word|wd|phrase)|secret|token|authorization|credential|cookie|signature"
    r"|(?:api|access|private)[_-]?key(?!_?id))"
)
_HARMLESS_END = r"[_-](?:file|path|type|endpoint|url|seconds|expiry|count)"

_SECRET_KEY = re.compile(rf"{_TELLTALE}(?!.*{_HARMLESS_END}$)", re.IGNORECASE | re.DOTALL)

# Every repetition is bounded or stops at a character that can't start it anew: text of an upstream, however
# long and odd, takes a time that grows with its length alone.
_SECRET_TEXT = re.compile(
    rf"""
    # password=…, "token": "…", \"secret\": \"…\", Authorization: Bearer …
    (?P<key> {_TELLTALE} (?![\w-]{{0,64}}{_HARMLESS_END}\b) [\w-]{{0,64}}
        (?:\\{{0,8}}["'])? \s{{0,8}} [=:] \s{{0,8}} )
    (?: (?P<open> [bB]? (?P<quote> \\{{0,8}}["'] )) (?: (?! (?<!\\)(?P=quote) ). )*
      | (?! (?:null|none|true|false)\b | \[redacted\] ) (?: (?:bearer|basic)\s{{1,8}} )? [^\s"'] \S* )
    # Bearer …, but not “bearer token” in a sentence, nor a challenge (RFC 6750, 3)
  | (?P<scheme> \b(?:bearer|basic)\s{{1,8}} )
    (?! (?:auth[a-z]{{0,16}}|tokens?|credentials?)[.,;:]?(?:\s|$) | (?:realm|scope|error)= ) [^\s"',;]+
    # scheme://user:…@host, but not scheme://host:port/path@
  | (?P<user> ://[^\s/:@"']{{0,256}}: ) (?! \d{{1,5}}(?:[/?\#\s"']|$) ) [^\s"']{{1,512}}(?=@)
    # JSON Web Tokens (RFC 7519), OSCAR's service tokens (pkg/utils/token.go: 64 hexadecimal digits), PEM keys
  | (?<![\w-])eyJ[\w-]{{8,}}\.[\w-]+(?:\.[\w-]*)?
  | \b[0-9a-f]{{64}}\b
  | -----BEGIN\ [A-Z\ ]{{0,32}}PRIVATE\ KEY-----.*?(?:-----END[A-Z\ ]{{0,40}}-----|\Z)
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


# Without white space, `=`, `:` and `.`, nothing shorter than OSCAR's tokens can match. Most ids are such.
_PLAIN_TEXT = re.compile(r"[\w@/+-]{0,63}", re.ASCII)


def redact_text(text: str) -> str:
    """Blank what looks like a credential inside free text, such as an upstream's error message."""
    if _PLAIN_TEXT.fullmatch(text):
        return text
    return _redact_short_text(text) if len(text) <= EXCERPT_CHARACTERS else _SECRET_TEXT.sub(_blank, text)


@lru_cache(_MOST_REMEMBERED)
def _redact_short_text(text: str) -> str:
    return _SECRET_TEXT.sub(_blank, text)


@lru_cache(_MOST_REMEMBERED)
def _names_a_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


def _blank(found: re.Match[str]) -> str:
    lead = found["key"] or found["scheme"] or found["user"] or ""
    return f"{lead}{found['open'] or ''}{REDACTED}"


def _redact_value(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return REDACTED if _names_a_secret(key) else redact_text(value)
    if value is None or isinstance(value, bool):
        return value
    if _names_a_secret(key):
        return REDACTED
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Mapping):
        return {name: _redact_value(str(name), inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redact_value(key, inner) for inner in value]
    # The renderers would print its repr: an exception's has the message, a dataclass's its fields.
    return redact_text(repr(value))


@lru_cache(_MOST_REMEMBERED)
def _redact_short_field(key: str, text: str) -> Any:
    """Remember what it gave: nearly all that is logged of one failed attempt is said again of the next."""
    return _redact_value(key, text)


def excerpt(text: str, *secrets: str) -> str:
    """Give the first of `text` on one line, without `secrets` and what looks like one."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, REDACTED)
    text = redact_text(" ".join(text.split())).rstrip(": ")  # "404 Not Found: " and no body behind it
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 1] + "…"


def redact(line: Line) -> None:
    """Blank secrets in every field of a log line but its time."""
    for key, value in line.items():
        if key != "timestamp":  # made here, whatever was given
            short = isinstance(value, str) and len(value) <= EXCERPT_CHARACTERS
            line[key] = (_redact_short_field if short else _redact_value)(key, value)


def _stamp(line: Line, logger: str, level: str) -> Line:
    """Add to `line` who says it, at what level, and that it is said now."""
    line["logger"] = logger
    line["level"] = level
    line["timestamp"] = f"{datetime.now(UTC).isoformat().removesuffix('+00:00')}Z"
    return line


def _said_in(record: logging.LogRecord) -> Line:
    """Return what a library said as a line. Raises what filling in its template raises."""
    line = _stamp({"event": record.getMessage()}, record.name, record.levelname.lower())
    if record.exc_info:
        line["exc_info"] = record.exc_info
    if record.stack_info:
        line["stack_info"] = record.stack_info
    return line


class _Handler(logging.Handler):
    """Writes lines to a descriptor: of those that say the same one a minute, and never waiting for it.

    Those of libraries come by `emit`, the standard library's way. The bridge's own go by `take`, past it: it
    costs as much as all the rest of a line.
    """

    def __init__(self, descriptor: int, render: Callable[[Line], str]) -> None:
        super().__init__()
        self._render = render
        self._damper = Damper()
        self.writer = Writer(descriptor, self._gap, self._tell_what_is_due)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(_said_in(record), likeness_of_a_librarys(record))
        except Exception:  # noqa: BLE001 - a line that can't be made is told of, and ends nothing
            self.handleError(record)

    def take(self, line: Line) -> None:
        """Write a line of the bridge's own."""
        self.acquire()
        try:
            self._take(line, likeness_of_our_own(line))
        except Exception:  # noqa: BLE001 - likewise
            self._tell_of_a_defect(line)
        finally:
            self.release()

    def _take(self, line: Line, alike: Hashable) -> None:
        self._tell(self._damper.due())
        holding = self._damper.holding
        if self._damper.admits(line, alike):
            self._put(line)
        elif self._damper.holding > holding:  # it will be due though nothing else is written
            self.writer.wake()

    def flush(self) -> None:
        """Have what is held back told, and all of it written, within `FLUSH_SECONDS`."""
        self.acquire()
        try:
            self._tell(self._damper.due(at_once=True))
        finally:
            self.release()
        self.writer.flush(FLUSH_SECONDS)

    def close(self) -> None:
        self.writer.close()
        super().close()

    def put_text(self, line: str) -> None:
        """Write a line that was not logged."""
        self.writer.put(redact_text(line).encode("utf-8", "backslashreplace"))

    def _put(self, line: Line) -> None:
        try:
            text = self._render(line)
        except Exception:  # noqa: BLE001 - likewise; this may be the writer's own thread
            self._tell_of_a_defect(line)
        else:
            self.writer.put(f"{text}\n".encode("utf-8", "backslashreplace"))

    def _tell(self, held_back: Iterable[tuple[Line, int]]) -> None:
        for line, count in held_back:
            line["and_more_in_the_last_minute"] = count
            self._put(line)

    def _tell_what_is_due(self) -> float | None:
        """Tell what was held back and is due; return after which time there is more.

        This is called in the writer's thread, for which whoever has the lock may be waiting.
        """
        if self.lock is None or not self.lock.acquire(blocking=False):
            return _AGAIN_SECONDS
        try:
            self._tell(self._damper.due())
            return self._damper.seconds()
        finally:
            self.lock.release()

    def _tell_of_a_defect(self, line: Line) -> None:
        """Print why `line` can't be made, the standard library's way."""
        self.handleError(logging.makeLogRecord({"msg": line}))

    def _gap(self, lines: int) -> bytes:
        line = _stamp({"event": f"log lines dropped: {lines}"}, __name__, "warning")
        return f"{self._render(line)}\n".encode()


def _take(logger: logging.Logger, level: str, line: Line) -> NoReturn:
    """Write a line of the bridge's own (structlog's one processor)."""
    _stamp(line, logger.name, level)
    for handler in _handlers():
        handler.take(line)
    raise structlog.DropEvent


def _renderer(form: Literal["json", "console"], *, colors: bool) -> Callable[[Line], str]:
    """Return what makes the text of a line."""
    if form == "json":
        encode: Callable[[Line], str] = json.JSONEncoder().encode
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )
        encode = partial(console, None, "")

    def render(line: Line) -> str:
        line = structlog.processors.format_exc_info(None, "", line)
        redact(line)  # last: no field and no traceback is made after it
        return encode(line)

    return render


def configure(
    level: str = "info", form: Literal["json", "console"] = "json", descriptor: int = STANDARD_ERROR
) -> None:
    """Send the bridge's and the libraries' log lines to `descriptor`, one line an occurrence.

    Lines that say the same are one a minute, with how many there were. Nobody waits for the descriptor: when
    nobody reads there, lines are dropped and counted. The standard library's `logging.shutdown`, which is
    called at the process's end, writes the last ones, and waits for `FLUSH_SECONDS` at most.

    In the console form a traceback follows its line. What is below `level` costs one call that does
    nothing.
    """
    structlog.configure(
        processors=[_take],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = _Handler(descriptor, _renderer(form, colors=os.isatty(descriptor)))
    # No line tells these, and finding them out costs a third of one (Logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - documented there
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    for old in _handlers():
        old.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The libraries say at INFO what the bridge says in its own words.
    for noisy in ("aiobotocore", "aiokafka", "asyncio", "aiohttp.access", "botocore", "httpcore", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def take_over_standard_error() -> None:
    """Send what else is printed to standard error, such as an uncaught traceback, the way of the log's lines.

    Otherwise whoever prints there waits for whoever reads there.
    """
    for handler in _handlers():
        sys.stderr = Stream(handler.put_text, STANDARD_ERROR)


def count_dropped_lines(count: Callable[[int], object]) -> None:
    """Call `count` with each number of lines more that were not written, from those so far on."""
    for handler in _handlers():
        handler.writer.count_dropped(count)


def _handlers() -> list[_Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)]
