"""What a person asks for: a name that events may go by."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from urllib.parse import quote

from bridge.store.history import Needle

_JOB = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?-[0-9a-f]{38}")
"""`core.identity.invocation_name`."""
_PLACE = re.compile(r"[^/@]+/\d+/\d+")
"""Of a record of Kafka, whose id has the record's time behind it."""
_OBJECT = re.compile(r"s3://([^/?]+)/([^?]+)")
_GLOB = re.compile(r"[*?]|\[[^\]]*\]?")


class Name:
    """An id, a subject, a key or a job's name: whole, from a `/` on, or with `*`, `?` and `[…]`.

    A place in a topic and the URL of an object are taken for the ids that begin with them.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.patterns = [text]
        """Each may be an exact text, an end behind a `/`, or a glob."""
        if _PLACE.fullmatch(text):
            self.patterns.append(f"{glob.escape(text)}@*")
        elif found := _OBJECT.fullmatch(text):
            bucket, key = found.groups()
            place = quote(bucket, "", errors="surrogatepass"), quote(key, errors="surrogatepass")
            self.patterns.append(glob.escape(f"s3://{'/'.join(place)}?") + "*")
        self._again = f"{text}+"
        pieces = _GLOB.split(self.patterns[-1])
        # What an id has encoded is not in the text: then a part of the path is.
        pieces += [piece for each in pieces for piece in each.split("/")]
        self.part = max((piece for piece in (text, *pieces) if self._is_in_all(piece)), key=len)
        """Text that whatever it fits has, letter for letter."""

    def _is_in_all(self, piece: str) -> bool:
        """Tell whether whatever fits has `piece` in it."""
        return all(any(piece in each for each in _GLOB.split(pattern)) for pattern in self.patterns)

    def needles(self) -> Iterator[Needle]:
        """Yield what the journal is searched for; it finds more than what is meant."""
        for pattern in self.patterns:
            if _GLOB.search(pattern):
                yield Needle(f"*{pattern}", "glob")
        if "[" in self.text or not _GLOB.search(self.text):
            yield Needle(self.text, "name")

    @property
    def is_job(self) -> bool:
        """Whether it has the form of a job's name."""
        return _JOB.fullmatch(self.text) is not None

    @property
    def is_glob(self) -> bool:
        """Whether it is no id of an event: those have no `*`."""
        return "*" in self.text

    def fits(self, text: str) -> bool:
        """Tell whether `text` is meant, or is the id of a meant event that was replayed as new."""
        if text.endswith(self.text) and (len(text) == len(self.text) or text[-len(self.text) - 1] == "/"):
            return True
        if text.startswith(self._again) and text[len(self._again) :].isdecimal():
            return True
        return any(
            fnmatchcase(text, pattern) or fnmatchcase(text, f"*/{pattern}")
            for pattern in self.patterns
            if _GLOB.search(pattern)
        )
