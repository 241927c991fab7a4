"""Kubernetes' expansion of `$(NAME)` in an environment value (`third_party/forked/golang/expansion`)."""

from __future__ import annotations

from collections.abc import Mapping


def expand(value: str, environment: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by what is defined before it and `$$` by `$`; leave unknown names as they are."""
    parts: list[str] = []
    position = 0
    while (dollar := value.find("$", position)) != -1 and dollar + 1 < len(value):
        parts.append(value[position:dollar])
        follower = value[dollar + 1]
        closer = value.find(")", dollar + 2) if follower == "(" else -1
        if follower == "$":
            parts.append("$")
            position = dollar + 2
        elif closer != -1:
            name = value[dollar + 2 : closer]
            parts.append(environment.get(name, f"$({name})"))
            position = closer + 1
        else:
            parts.append("$" + follower)
            position = dollar + 2
    parts.append(value[position:])
    return "".join(parts)
