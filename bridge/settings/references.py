"""What no single value can tell: names that refer to others, expressions, two things that are one."""

from __future__ import annotations

from bridge.core.errors import Mistake
from bridge.settings.expressions import mistakes_in
from bridge.settings.names import did_you_mean
from bridge.settings.tree import Loc, Place, Value, dotted


def check(root: Value) -> tuple[list[Mistake], list[str]]:
    """Check the tree's references and expressions; give the mistakes and the warnings.

    Works on the tree, not on the models, so that it speaks up beside their mistakes. What has the
    wrong type is left to them.
    """
    checker = _Checker(root)
    checker.routes()
    checker.services()
    checker.sources()
    return checker.mistakes, checker.warnings


class _Checker:
    def __init__(self, root: Value) -> None:
        self._root = root
        self._rooms = {room: root.mapping(room) for room in ("clusters", "services", "sources")}
        self._named: dict[str, set[str]] = {room: set() for room in self._rooms}
        self.mistakes: list[Mistake] = []
        self.warnings: list[str] = []
        self._windows: dict[tuple[object, ...], Loc] = {}
        """The routes that send events together, by what tells their windows apart."""
        self._routes_known = bool(root.items("routes"))
        """Whether every route's names could be read: else nothing is said about what no route names."""

    def _wrong(self, value: Value, loc: Loc, message: str) -> None:
        self.mistakes.append(Mistake(str(value.place), dotted(loc), message))

    def routes(self) -> None:
        for index, route in enumerate(self._root.items("routes")):
            loc: Loc = ("routes", index)
            self._refer(route.child("from"), (*loc, "from"), "sources")
            for way in (("when",), ("order_by",), ("merge", "key"), ("complete", "marker")):
                self._expression(route.child(*way), (*loc, *way))
            self._orders(route, loc)
            self._merges(route, loc)
            if route.given("allow") is None:
                self._refer(route.child("to"), (*loc, "to"), "services")
                continue
            self._expression(route.child("to"), (*loc, "to"))
            for position, entry in enumerate(route.items("allow")):
                self._refer(entry, (*loc, "allow", position), "services")

    def _merges(self, route: Value, loc: Loc) -> None:
        """Refuse two routes of a source whose windows would be one: same service, and same key."""
        given = [part for part in ("merge", "quiet", "complete") if route.given(part) is not None]
        if not given:
            return
        if (order_by := route.given("order_by")) is not None:
            message = (
                f"a route with `{given[0]}` sends events together, so none of them goes behind another: "
                "leave one of the two out"
            )
            self._wrong(order_by, (*loc, "order_by"), message)
        key = route.text("merge", "key") or given != ["merge"]  # or the folder
        to = route.text("to") if route.given("allow") is None else None
        for service in [to] if to else [entry.content for entry in route.items("allow")]:
            first = self._windows.setdefault((route.text("from"), service, key), loc)
            if first != loc:
                message = (
                    f"`{dotted(first)}` sends events of this source to this service together too, by the "
                    "same `merge.key`: make one route of the two, or give each a key of its own"
                )
                merge = route.child("merge")
                self._wrong(merge or route, (*loc, "merge") if merge is not None else loc, message)

    def _orders(self, route: Value, loc: Loc) -> None:
        """Warn of an order that the source has not."""
        source, order_by = self._rooms["sources"].get(route.text("from") or ""), route.given("order_by")
        if source is None or order_by is None or source.text("type") != "sqs":
            return
        if not (source.text("queue") or "").endswith(".fifo"):
            message = (
                "a queue of SQS that is not FIFO keeps no order: `order_by` lets no two events of a key go "
                "at once, and no more"
            )
            self.warnings.append(f"{order_by.place}: {dotted((*loc, 'order_by'))}: {message}")

    def services(self) -> None:
        seen: dict[tuple[str | None, ...], str] = {}
        for key, service in self._rooms["services"].items():
            loc: Loc = ("services", key)
            if self._is_unused("services", key):
                place = self._key_place("services", key)
                self.warnings.append(f"{place}: {dotted(loc)}: no route uses this service")
            if service.content is not None and not isinstance(service.content, dict):
                continue
            cluster = self._cluster_of(service, loc)
            self._lists_jobs(service, cluster, loc)
            identity = (cluster, service.text("owner"), service.text("service") or key)
            first = seen.setdefault(identity, key)
            if first != key:
                message = (
                    f"the same service of OSCAR as `services.{first}`: an event for both would be one job; "
                    "remove one of the two"
                )
                self._wrong(service.child("service") or service, (*loc, "service"), message)

    def _cluster_of(self, service: Value, loc: Loc) -> str:
        named, clusters = service.given("cluster"), self._rooms["clusters"]
        if named is not None and isinstance(named.content, str):
            self._refer(named, (*loc, "cluster"), "clusters")
            return named.content
        if len(clusters) == 1:
            return next(iter(clusters))
        if named is None and clusters:
            names = ", ".join(f"`{each}`" for each in clusters)
            message = f"missing: there are several clusters; name one of {names}"
            self._wrong(service, (*loc, "cluster"), message)
        return ""

    def _lists_jobs(self, service: Value, cluster: str, loc: Loc) -> None:
        """Refuse what needs a listing of jobs where the credentials don't open the management API."""
        if self._root.text("clusters", cluster, "auth", "type") != "service-token":
            return
        for way in (("limits", "active_jobs"), ("track",)):
            value = service.given(*way)
            if value is not None and value.content:
                message = (
                    "a service token does not open the listing of jobs, so nobody could tell which have "
                    f"ended; use the cluster's user or OIDC in `clusters.{cluster}.auth`, or remove it"
                )
                self._wrong(value, (*loc, *way), message)

    def sources(self) -> None:
        seen: dict[str, str] = {}
        for key, source in self._rooms["sources"].items():
            loc: Loc = ("sources", key)
            first = seen.setdefault(source.text("identity") or key, key)
            if first != key:
                message = (
                    f"the identity of `sources.{first}` too: events of the two could be taken for one; "
                    "give each its own `identity`"
                )
                self._wrong(source.child("identity") or source, (*loc, "identity"), message)
            if self._is_unused("sources", key):
                message = "no route reads this source, so its events would be lost; add a route, or remove it"
                self.mistakes.append(Mistake(str(self._key_place("sources", key)), dotted(loc), message))

    def _is_unused(self, room: str, key: str) -> bool:
        return self._routes_known and key not in self._named[room]

    def _key_place(self, room: str, key: str) -> Place:
        return self._root.mapping()[room].key_places[key]

    def _refer(self, value: Value | None, loc: Loc, room: str) -> None:
        """Look up what refers to a part of the configuration by its key there."""
        name, known = None if value is None else value.content, self._rooms[room]
        if value is not None and isinstance(name, str) and name in known:
            self._named[room].add(name)
            return
        self._routes_known = False  # it may be the name of the one that seems unused
        if value is not None and isinstance(name, str) and (known or self._root.child(room) is None):
            self._wrong(
                value, loc, f"`{value.written or name}` is not in `{room}`{did_you_mean(name, known)}"
            )

    def _expression(self, value: Value | None, loc: Loc) -> None:
        if value is None or not isinstance(value.content, str):
            return
        messages = mistakes_in(value.content)
        if messages and value.written is not None:  # they would quote what came from the environment
            messages = ["not an expression that can be evaluated, once every ${NAME} is replaced"]
        for message in messages:
            self._wrong(value, loc, message)
