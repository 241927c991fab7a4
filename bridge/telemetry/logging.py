"""Structured log lines: JSON for machines, a console form for a person; secrets never in either."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog

_SECRET_KEY = re.compile(
    r"password|passwd|secret|token|authorization|api[_-]?key|private[_-]?key", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"(?P<lead>\b(?:Bearer|Basic)\s+|://[^/\s:@]*:|\b(?:password|secret|[a-z_]*token)\s*[=:]\s*)"
    r"(?P<secret>[^\s@&\"',;]+)",
    re.IGNORECASE,
)
REDACTED = "[redacted]"


def redact_text(text: str) -> str:
    """Blank what looks like a credential inside free text, such as an upstream's error message."""
    return _SECRET_TEXT.sub(rf"\g<lead>{REDACTED}", text)


def _redact_value(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return REDACTED if _SECRET_KEY.search(key) and not key.endswith("_file") else redact_text(value)
    if isinstance(value, Mapping):
        return {name: _redact_value(str(name), inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact_value(key, inner) for inner in value]
    return value


def redact(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank secrets in every field of a log line (a structlog processor)."""
    for key, value in line.items():
        line[key] = _redact_value(key, value)
    return line


def configure(level: str = "info", form: Literal["json", "console"] = "json") -> None:
    """Send the bridge's and the libraries' log lines to standard error, one line an occurrence."""
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if form == "json" else structlog.processors.StackInfoRenderer(),
        redact,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The libraries say at INFO what the bridge says in its own words.
    for noisy in ("aiokafka", "asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
