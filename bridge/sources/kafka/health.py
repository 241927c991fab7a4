"""What is not well with a Kafka source, told steadily, also while one reader follows another."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from bridge.core.steady import Steady


class Health:
    """Holds a problem for each thing that is not well, such as a partition, a broker or a topic."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._problems: dict[Hashable, Steady] = {}
        self._failing: set[Hashable] = set()
        """Those of them that are not over."""

    def failed(self, what: Hashable, reason: str) -> None:
        """Note that `what` is not well; the log says so once."""
        steady = self._problems.get(what)
        if steady is None or steady.problem is None:
            self._log.error("kafka: not well", reason=reason)
        steady = self._problems.setdefault(what, Steady())
        steady.failed(reason)
        self._failing.add(what)

    def recovered(self, what: Hashable) -> None:
        """Note that `what` is well."""
        steady = self._problems.get(what)
        if steady is None:
            return
        if what in self._failing:
            self._failing.discard(what)
            self._log.info("kafka: well again", problem=steady.problem)
        steady.recovered()
        if steady.problem is None:
            del self._problems[what]

    @property
    def failing(self) -> frozenset[Hashable]:
        """What is not well now, whoever noted it: one reader's successor has to note that it is over."""
        return frozenset(self._failing)

    def forget(self, is_ours: Callable[[Hashable], bool]) -> None:
        """Drop at once what is not ours to tell any more."""
        for what in [what for what in self._problems if not is_ours(what)]:
            del self._problems[what]
            self._failing.discard(what)

    def problems(self) -> list[str]:
        """Return what is not well, or was so a short while ago."""
        return [told for steady in self._problems.values() if (told := steady.problem) is not None]
