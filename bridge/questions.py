"""What a running bridge is asked, over its socket and over HTTP; answering changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bridge.status import MOST_HOURS, Status
from bridge.values import Model


class _StatusAsked(Model):
    do: Literal["status"]


class _HistoryAsked(Model):
    do: Literal["history"]
    hours: float = Field(default=6.0, gt=0, le=MOST_HOURS)


_ASKED: TypeAdapter[_StatusAsked | _HistoryAsked] = TypeAdapter(
    Annotated[_StatusAsked | _HistoryAsked, Field(discriminator="do")]
)


class Questions:
    """Answers what is asked of a running bridge."""

    def __init__(self, status: Status) -> None:
        self._status = status

    @staticmethod
    def is_meant(command: Mapping[str, Any]) -> bool:
        """Tell whether a command that came is a question."""
        return command.get("do") in ("status", "history")

    async def answer(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer `command`. Raises ValueError for one that can't be understood."""
        try:
            asked = _ASKED.validate_python(command)
        except ValidationError as error:
            raise ValueError("; ".join(f"{e['loc']}: {e['msg']}" for e in error.errors())) from error
        if isinstance(asked, _HistoryAsked):
            return self._status.history(asked.hours)
        return self._status.document()
