"""What a person asks for: a name that events may go by."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from fnmatch import translate
from functools import cached_property
from urllib.parse import quote

from bridge.store.history import Needle

_JOB = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?-[0-9a-f]{38}")
"""`core.identity.invocation_name`."""
_PLACE = re.compile(r"[^/@]+/\d+/\d+")
"""Of a record of Kafka, whose id has the record's time behind it."""
_OBJECT = re.compile(r"s3://([^/?]+)/([^?]+)")
_SET = r"\[!?+\]?+[^\]]*+\]"
_GLOB = re.compile(rf"[*?]|{_SET}")
_CLOSED = re.compile(rf"(?:[^\[]++|{_SET})*+")
"""What is before a `[` that no `]` ends."""


class Name:
    """An id, a subject, a key or a job's name: whole, from a `/` on, or with `*`, `?` and `[…]`.

    A place in a topic and the URL of an object are taken for the ids that begin with them.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.patterns = [_with_ends(text)]
        """Each may be an exact text, an end behind a `/`, or a glob."""
        if _PLACE.fullmatch(text):
            self.patterns.append(f"{glob.escape(text)}@*")
        elif found := _OBJECT.fullmatch(text):
            bucket, key = found.groups()
            place = quote(bucket, "", errors="surrogatepass"), quote(key, errors="surrogatepass")
            self.patterns.append(glob.escape(f"s3://{'/'.join(place)}?") + "*")
        self._again = f"{text}+"
        self.part = max(set.intersection(*map(_pieces, self.patterns)), key=len)
        """Text that whatever it fits has, letter for letter."""

    def needles(self) -> Iterator[Needle]:
        """Yield what the journal is searched for; it finds more than what is meant."""
        for pattern in self.patterns:
            if _GLOB.search(pattern):
                yield Needle(f"*{pattern}", "glob")
        if "[" in self.text or not _GLOB.search(self.patterns[0]):
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
        return any(pattern.match(text) for pattern in self._compiled)

    @cached_property
    def _compiled(self) -> Sequence[re.Pattern[str]]:
        """The globs, which may take 20 ms to be made: on the loop nothing asks for them first."""
        globs = [pattern for pattern in self.patterns if _GLOB.search(pattern)]
        return [re.compile(translate(each)) for glob in globs for each in (glob, f"*/{glob}")]


def _with_ends(pattern: str) -> str:
    """Write each `[` that no `]` ends as a set of its own, so that nothing looks for its end."""
    closed = _CLOSED.match(pattern)
    end = 0 if closed is None else closed.end()
    return pattern[:end] + pattern[end:].replace("[", "[[]")


def _pieces(pattern: str) -> set[str]:
    """Return text that whatever fits has, and parts of it: an id has some encoded, or a time behind `@`."""
    whole = _GLOB.split(pattern)
    return {*whole, *(piece for each in whole for mark in "/@" for piece in each.split(mark))}
