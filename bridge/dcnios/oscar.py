"""`OSCAR`: elements as services, and the clusters they are on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from bridge.dcnios.draft import Draft, Entry
from bridge.dcnios.elements import Element
from bridge.dcnios.names import key_of
from bridge.dcnios.pace import Pace, Processor, pace_of, rate_text
from bridge.dcnios.remarks import What
from bridge.dcnios.writing import value_of

PROCESSORS = {"InvokeOSCAR": Processor(1)}
_HOST = re.compile(r"https?://((?:[0-9]+\.){3}[0-9]+|[A-Za-z0-9-]+)")
"""An address, or the first part of a host's name."""


class _Login(NamedTuple):
    """Who calls a cluster: what makes two elements use one entry of `clusters`."""

    endpoint: str
    user: str | None
    secret: str


@dataclass(slots=True)
class Service:
    """One service of OSCAR, with the elements that call it."""

    callers: list[tuple[Element, _Login]]
    name: str
    """OSCAR's."""
    pace: Pace
    """The slowest of theirs."""
    key: str = ""
    sources: dict[str, Pace] = field(default_factory=dict)
    """What it is reached from → how fast that went."""
    base64: set[str] = field(default_factory=set)
    """Those of them whose messages went as base64."""

    @property
    def element(self) -> Element:
        """The element that says how it is called."""
        return self.callers[0][0]

    @property
    def login(self) -> _Login:
        """How it is called."""
        return self.callers[0][1]


def read(elements: Iterable[Element], nodes: int) -> dict[str, Service]:
    """Return the service that each element calls, by the element's name."""
    found: dict[tuple[str, str], Service] = {}
    by_name: dict[str, Service] = {}
    for element in elements:
        login = _login(element)
        name = element.required("service")
        element.leave_out("alterations", "DCNiOS can't alter what goes to a destination")
        pace = pace_of(element, PROCESSORS, nodes)
        element.finish()
        service = Service([(element, login)], name, pace)
        first = found.setdefault((login.endpoint, name), service)
        by_name[element.name] = first
        if first is service:
            element.say(What.KEPT, "service", f"OSCAR's service `{name}`")
            _tell_loss(element)
            continue
        told = (
            f"the service of `{first.element.name}` too: one service of the bridge, at the slower pace; an "
            "event that goes to both is one job"
        )
        element.say(What.CHANGED, "service", told)
        first.callers.append((element, login))
        first.callers.sort(key=lambda caller: caller[1].user is None)  # user and password open more
        first.pace = _slower(first.pace, pace)
    return by_name


def _login(element: Element) -> _Login:
    endpoint = element.required("endpoint").rstrip("/")
    slash = endpoint != element.text("endpoint")
    told = "without its last slash" if slash else "as it is"
    if endpoint.startswith("http:"):
        told += "; NiFi follows a redirect to https, the bridge does not"
    element.say(What.CHANGED if slash else What.KEPT, "endpoint", told)
    if element.has("user") and element.has("password"):
        element.leave_out("token", "user and password go over it")
        user = element.required("user")
        return _Login(endpoint, user, element.secret("password"))
    for key in ("user", "password"):
        element.leave_out(key, "DCNiOS takes the token unless there are both user and password")
    if not element.has("token"):
        element.wrong("token", "missing; expected a token, or user and password")
        return _Login(endpoint, None, "")
    return _Login(endpoint, None, element.secret("token"))


def _tell_loss(element: Element) -> None:
    element.say(
        What.LOST,
        None,
        "every event whose call failed, and all events once the service was updated, where that changed its "
        "token: NiFi drops what is refused",
    )


def _slower(one: Pace, other: Pace) -> Pace:
    rates = [(pace.rate, pace) for pace in (one, other) if pace.rate is not None]
    pace = min(rates, key=lambda pair: pair[0])[1] if rates else one
    return Pace(pace.rate, min(one.nodes, other.nodes), pace.origin, pace.told)


def draw(services: Iterable[Service], draft: Draft) -> None:
    """Add those services to the draft, and the clusters they are on."""
    services = list(services)
    clusters: dict[_Login, Entry] = {}
    logins = dict.fromkeys(service.login for service in services)
    for service in services:
        service.key = key_of(service.element.name, [entry.key for entry in draft.services], "service")
        entry = Entry(service.key, service.element.origin())
        if service.login not in clusters:
            clusters[service.login] = _cluster(service, draft, only=len(logins) == 1)
        _tell_callers(service, clusters[service.login])
        if len(logins) > 1:
            entry.put("cluster", clusters[service.login].key)
        if service.key != service.name:
            entry.put("service", service.name, service.element.origin("service"), "what OSCAR calls it")
        _payload(service, entry)
        _limits(service, entry)
        draft.services.append(entry)


def _cluster(service: Service, draft: Draft, *, only: bool) -> Entry:
    element, login = service.element, service.login
    host = _HOST.match(login.endpoint)
    name = "main" if only else service.key if login.user is None or host is None else host[1]
    entry = Entry(key_of(name, [one.key for one in draft.clusters], "cluster"), element.origin())
    entry.put("endpoint", login.endpoint, element.origin("endpoint"))
    if login.user is None:
        file = draft.secret(f"{entry.key}-token", login.secret)
        entry.put("auth", {"type": "service-token", "token_file": file}, element.origin("token"))
    else:
        file = draft.secret(f"{entry.key}-password", login.secret)
        value: dict[str, str | int | bool] = {"type": "basic", "username": login.user, "password_file": file}
        entry.put("auth", value, element.origin("user"))
    draft.clusters.append(entry)
    return entry


def _tell_callers(service: Service, cluster: Entry) -> None:
    for element, login in service.callers:
        kept = What.KEPT if service.key == element.name else What.CHANGED
        element.say(kept, "name", f"`services.{service.key}`")
        for key in ("token",) if login.user is None else ("user", "password"):
            if login == service.login:
                element.say(What.KEPT, key, f"`clusters.{cluster.key}.auth`")
            else:
                element.leave_out(key, f"the service is called as `{service.element.name}` says")
    if service.login.user is None:
        why = "a token ends when its service is updated on some clusters: better give user and password"
        service.element.say(What.TO_DO, "token", why)


def _payload(service: Service, entry: Entry) -> None:
    if not service.base64:
        return
    if service.base64 == set(service.sources):
        entry.put("payload", "base64", comment="Encode of DCNiOS: the script sees the message as it is")
        return
    others = ", ".join(f"`{name}`" for name in sorted(set(service.sources) - service.base64))
    why = f"`Encode`: `payload` is the service's, and {others} had none; what is not JSON goes as base64"
    service.element.say(What.LEFT_OUT, None, why)


def _limits(service: Service, entry: Entry) -> None:
    rate, told = service.pace.rate, service.pace.told
    slow = [pace for pace in service.sources.values() if pace.rate is not None]
    if slow and len(slow) < len(service.sources):
        names = ", ".join(f"`{name}`" for name, pace in service.sources.items() if pace.rate is not None)
        why = f"the pace of {names}: other sources of this service had none; set `limits.rate` as you mean it"
        service.element.say(What.LEFT_OUT, None, why)
    elif slow:
        together = sum((pace.rate or Fraction(0) for pace in slow), Fraction(0))
        if rate is None or together < rate:
            rate, told = together, " and ".join(pace.told for pace in slow)
    limits: dict[str, str | int | bool] = {"concurrency": service.pace.nodes}
    comment = f"as NiFi: {service.pace.nodes} call{'s' if service.pace.nodes > 1 else ''} at once"
    if rate is not None:
        limits["rate"] = rate_text(rate)
        comment += f", {told}"
    entry.put("limits", limits, service.pace.origin, comment)
    service.element.say(What.CHANGED, None, f"`limits: {value_of(limits)}`: {comment}; OSCAR may take more")
