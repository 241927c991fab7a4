"""One element of DCNiOS's file: its keys are asked for by name, and what nobody asked for is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from bridge.dcnios.remarks import Origin, Report, What
from bridge.settings.tree import Loc, Value, dotted

NOTHING = "there is nothing in it"
_MOST = 10**9
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,9})(?:\.[0-9]{0,6})?|\.[0-9]{1,6}")


class Element:
    """A mapping of DCNiOS's file.

    Whoever reads a key tells what became of it. What is of another type than DCNiOS takes is a mistake, and
    reads as if it were not there.
    """

    def __init__(self, value: Value, loc: Loc, kind: str, report: Report) -> None:
        self.value = value
        self.kind = kind
        """Such as `Kafka`: the name that the newest DCNiOS has for it."""
        self.report = report
        self.name = ""
        """What a connection calls it."""
        self._loc = loc
        self._read: set[str] = set()

    def origin(self, key: str | None = None) -> Origin:
        """Return where the element stands, or its value at `key`; where it is missing, the element."""
        if key is None:
            return Origin(self.value.place, dotted(self._loc))
        value = self.value.child(key)
        return Origin((value or self.value).place, dotted((*self._loc, key)))

    def say(self, what: What, key: str | None, text: str) -> None:
        """Tell what became of the element, or of its value at `key`."""
        self.report.say(what, self.origin(key), text)

    def wrong(self, key: str | None, message: str) -> None:
        """Tell a mistake in the element, or at `key`."""
        self.report.wrong(self.origin(key), message)

    def has(self, key: str) -> bool:
        """Return whether there is something at `key`: `key:` with nothing behind it is nothing."""
        value = self.value.child(key)
        return value is not None and value.content is not None

    def content(self, key: str) -> object:
        """Return what stands at `key` as YAML has it."""
        self._read.add(key)
        value = self.value.child(key)
        return None if value is None else value.content

    def text(self, key: str) -> str | None:
        """Return the text at `key`, a number as it is written; None when it is not there."""
        value = self.value.child(key)
        self._read.add(key)
        if value is None:
            return None
        if value.content is None:
            self.say(What.LEFT_OUT, key, NOTHING)
            return None
        content = value.content
        if isinstance(content, (dict, list)):
            self.wrong(key, f"expected text, found a {'mapping' if isinstance(content, dict) else 'list'}")
            return None
        if isinstance(content, str):
            return content
        if isinstance(content, bool) or value.spelt != str(content):  # 010 is eight to DCNiOS, and ten to us
            self.wrong(key, "expected text: put it in quotes, as it is meant")
            return None
        return value.spelt

    def required(self, key: str) -> str:
        """Return the text at `key`; where there is none that is a mistake, and the text is empty."""
        text = self._some(key)
        if not text.isprintable():
            self.wrong(key, "expected text of one line, without control characters")
        return text

    def secret(self, key: str) -> str:
        """Return the secret at `key`, one line without the line's end; else as `required`."""
        text = self._some(key).rstrip("\r\n")
        if len(text.splitlines()) > 1 or text.startswith("\ufeff"):  # which a file of one line can't hold
            self.wrong(key, "expected a secret, which is one line")
        return text

    def _some(self, key: str) -> str:
        text = self.text(key)
        if text is None and not self.has(key):
            self.wrong(key, "missing; expected text")
        elif text is not None and not text.strip():
            self.wrong(key, "expected text, found nothing in it")
        return text or ""

    def number(self, key: str) -> Fraction | None:
        """Return the number at `key`, which may be one in quotes; None when there is none."""
        value = self.value.child(key)
        self._read.add(key)
        if value is None or value.content is None:
            return None
        text = value.spelt.strip()
        if _NUMBER.fullmatch(text) and Fraction(text) <= _MOST:
            return Fraction(text)
        self.wrong(key, f"expected a number without a unit, of at most {_MOST:,}")
        return None

    def inner(self, key: str) -> Element | None:
        """Return the mapping at `key` as an element of its own; None when there is none."""
        value = self.value.child(key)
        self._read.add(key)
        if value is None:
            return None
        if value.content in (None, {}):
            self.say(What.LEFT_OUT, key, NOTHING)
            return None
        if not isinstance(value.content, dict):
            self.wrong(key, "expected a mapping of `key: value`")
            return None
        return Element(value, (*self._loc, key), self.kind, self.report)

    def items(self, key: str) -> Iterator[Element]:
        """Give the mappings in the list at `key`, each as an element of its own."""
        value = self.value.child(key)
        self._read.add(key)
        if value is None:
            return
        if value.content in (None, []):
            self.say(What.LEFT_OUT, key, NOTHING)
            return
        if not isinstance(value.content, list):
            self.wrong(key, "expected a list, each item with `- `")
            return
        for index, item in enumerate(value.content):
            element = Element(item, (*self._loc, key, index), self.kind, self.report)
            if isinstance(item.content, dict):
                yield element
            else:
                element.wrong(None, "expected a mapping of `key: value`")

    def leave_out(self, key: str, why: str) -> None:
        """Tell that what stands at `key`, if anything does, is not carried over."""
        self._read.add(key)
        if self.value.child(key) is not None:
            self.say(What.LEFT_OUT, key, why)

    def finish(self) -> None:
        """Tell of each key that nobody has read."""
        for key in self.value.mapping():
            if key not in self._read:
                self.leave_out(key, f"DCNiOS reads no such key of {self.kind}")
