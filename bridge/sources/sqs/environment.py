"""Which variable of the AWS environment is wrong: botocore names none in what it says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

_SECRET = re.compile(r"SECRET|TOKEN$|ACCESS_KEY")
_FILE = re.compile(r"FILE$|BUNDLE$")


def suspects(error: BaseException, environment: Mapping[str, str] = os.environ) -> str:
    """Return whom to suspect of `error`, such as ` (is AWS_RETRY_MODE right?)`; nothing where nobody is.

    That is each variable of AWS whose value the error shows, or which names a file that is not there. Where
    there is none such, each that is set. No value is told.
    """
    set_here = {
        name: value
        for name, value in environment.items()
        if name.startswith("AWS_") and value and not _SECRET.search(name)
    }
    text = str(error)
    found = [name for name, value in set_here.items() if _shows(text, value) or _is_missing(name, value)]
    names = " or ".join(sorted(found or set_here))
    return f" (is {names} right?)" if names else ""


def _shows(text: str, value: str) -> bool:
    try:
        host = urlsplit(value).hostname
    except ValueError:
        host = None
    return any(re.search(rf"(?<![\w-]){re.escape(shown)}(?![\w-])", text) for shown in (value, host) if shown)


def _is_missing(name: str, value: str) -> bool:
    return _FILE.search(name) is not None and not Path(value).expanduser().exists()
