"""What no single value can tell: names that refer to others, expressions, two things that are one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches

from bridge.core.errors import Mistake
from bridge.pipeline import library
from bridge.pipeline.analysis import Tokens, bound_names
from bridge.pipeline.context import VARIABLES
from bridge.pipeline.expression import patterns
from bridge.settings.document import Loc, Value, dotted

# cel-spec, "List of Standard Definitions", as far as common-expression-language 0.10 has them (a test
# asks it). With any other function, or one called in the other way, an expression compiles, and then fails
# for each event on its own.
FUNCTIONS = frozenset(
    {"bytes", "double", "duration", "dyn", "int", "size", "string", "timestamp", "type", "uint"}
)
"""Called as `int(text)`."""
METHODS = frozenset(
    {"contains", "endsWith", "matches", "size", "startsWith"}
    | {"getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours"}
    | {"getMilliseconds", "getMinutes", "getMonth", "getSeconds"}
)
"""Called as `text.contains(other)`."""
TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
"""Names of types, to compare with what `type()` gives (a test asks the library)."""
_MOST_SHOWN = 12
_CEL_ERROR = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?(.*)")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Give `; did you mean …?`, the names there are when nothing is close, or nothing when there are none."""
    names = list(known)
    by_lower = {each.lower(): each for each in names}
    if close := get_close_matches(name.lower(), by_lower, n=1):
        return f"; did you mean `{by_lower[close[0]]}`?"
    if not names or len(names) > _MOST_SHOWN:
        return ""
    return f"; there {'is' if len(names) == 1 else 'are'} " + ", ".join(f"`{each}`" for each in sorted(names))


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
        self._clusters = root.mapping("clusters")
        self._services = root.mapping("services")
        self._sources = root.mapping("sources")
        self.mistakes: list[Mistake] = []
        self.warnings: list[str] = []
        self._read: set[str] = set()
        self._used: set[str] = set()
        self._windows: dict[tuple[object, ...], Loc] = {}
        """The routes that send events together, by what tells their windows apart."""
        self._routes_known = True
        """Whether every route's names could be read: else nothing is said about what no route names."""

    def _wrong(self, value: Value, loc: Loc, message: str) -> None:
        self.mistakes.append(Mistake(str(value.place), dotted(loc), message))

    def routes(self) -> None:
        routes = self._root.child("routes")
        self._routes_known = routes is not None and bool(routes.items())
        for index, route in enumerate(routes.items() if routes is not None else ()):
            loc: Loc = ("routes", index)
            self._refer(route, "from", loc, "sources", self._sources, self._read)
            self._expression(route, "when", loc)
            self._expression(route, "order_by", loc)
            self._orders(route, loc)
            for part, key in (("merge", "key"), ("complete", "marker")):
                if (holder := route.child(part)) is not None:
                    self._expression(holder, key, (*loc, part))
            self._merges(route, loc)
            allow = route.child("allow")
            if allow is None or allow.content is None:
                self._refer(route, "to", loc, "services", self._services, self._used)
                continue
            self._expression(route, "to", loc)
            for position, entry in enumerate(allow.items()):
                self._refer_value(entry, (*loc, "allow", position), "services", self._services, self._used)

    def _merges(self, route: Value, loc: Loc) -> None:
        """Refuse two routes of a source whose windows would be one: same service, and same key."""
        parts = {part: route.child(part) for part in ("merge", "quiet", "complete")}
        given = [part for part, value in parts.items() if value is not None and value.content is not None]
        if not given:
            return
        order_by = route.child("order_by")
        if order_by is not None and order_by.content is not None:
            message = (
                f"a route with `{given[0]}` sends events together, so none of them goes behind another: "
                "leave one of the two out"
            )
            self._wrong(order_by, (*loc, "order_by"), message)
        merge = parts["merge"]
        key = None if merge is None else merge.text("key")
        by_folder = given != ["merge"]
        allow = route.child("allow")
        services = (
            [route.text("to")]
            if allow is None or allow.content is None
            else [entry.content for entry in allow.items()]
        )
        for service in services:
            window = (route.text("from"), service, key or by_folder)
            first = self._windows.setdefault(window, loc)
            if first != loc:
                message = (
                    f"`{dotted(first)}` sends events of this source to this service together too, by the "
                    "same `merge.key`: make one route of the two, or give each a key of its own"
                )
                self._wrong(merge or route, (*loc, "merge") if merge is not None else loc, message)

    def _orders(self, route: Value, loc: Loc) -> None:
        """Warn of an order that the source has not."""
        source, order_by = self._sources.get(route.text("from") or ""), route.child("order_by")
        if source is None or order_by is None or order_by.content is None or source.text("type") != "sqs":
            return
        if not (source.text("queue") or "").endswith(".fifo"):
            message = (
                "a queue of SQS that is not FIFO keeps no order: `order_by` lets no two events of a key go "
                "at once, and no more"
            )
            self.warnings.append(f"{order_by.place}: {dotted((*loc, 'order_by'))}: {message}")

    def services(self) -> None:
        seen: dict[tuple[str, str | None, str], str] = {}
        for key, service in self._services.items():
            loc: Loc = ("services", key)
            if self._routes_known and key not in self._used:
                place = self._root.mapping()["services"].key_places[key]
                self.warnings.append(f"{place}: services.{key}: no route uses this service")
            if service.content is not None and not isinstance(service.content, dict):
                continue
            name = service.text("service") or key
            cluster = self._cluster_of(service, loc)
            self._lists_jobs(service, cluster, loc)
            identity = (cluster, service.text("owner"), name)
            first = seen.setdefault(identity, key)
            if first != key:
                message = (
                    f"the same service of OSCAR as `services.{first}`: an event for both would be one job; "
                    "remove one of the two"
                )
                self._wrong(service.child("service") or service, (*loc, "service"), message)

    def _cluster_of(self, service: Value, loc: Loc) -> str:
        cluster = service.text("cluster")
        if cluster is not None:
            self._refer(service, "cluster", loc, "clusters", self._clusters, set())
            return cluster
        if len(self._clusters) == 1:
            return next(iter(self._clusters))
        given = service.child("cluster")
        if len(self._clusters) > 1 and (given is None or given.content is None):
            names = ", ".join(f"`{each}`" for each in self._clusters)
            self._wrong(
                service, (*loc, "cluster"), f"missing: there are several clusters; name one of {names}"
            )
        return ""

    def _lists_jobs(self, service: Value, cluster: str, loc: Loc) -> None:
        """Refuse what needs a listing of jobs where the credentials don't open the management API."""
        holder = self._clusters.get(cluster)
        auth = None if holder is None else holder.child("auth")
        if auth is None or auth.text("type") != "service-token":
            return
        limits = service.child("limits")
        wants = {
            ("limits", "active_jobs"): None if limits is None else limits.child("active_jobs"),
            ("track",): service.child("track"),
        }
        for key, value in wants.items():
            if value is not None and value.content not in (None, False):
                message = (
                    "a service token does not open the listing of jobs, so nobody could tell which have "
                    f"ended; use the cluster's user or OIDC in `clusters.{cluster}.auth`, or remove it"
                )
                self._wrong(value, (*loc, *key), message)

    def sources(self) -> None:
        seen: dict[str, str] = {}
        for key, source in self._sources.items():
            loc: Loc = ("sources", key)
            identity = source.text("identity") or key
            first = seen.setdefault(identity, key)
            if first != key:
                message = (
                    f"the identity of `sources.{first}` too: events of the two could be taken for one; "
                    "give each its own `identity`"
                )
                self._wrong(source.child("identity") or source, (*loc, "identity"), message)
            if self._routes_known and key not in self._read:
                place = self._root.mapping()["sources"].key_places[key]
                message = "no route reads this source, so its events would be lost; add a route, or remove it"
                self.mistakes.append(Mistake(str(place), dotted(loc), message))

    def _refer(
        self, holder: Value, key: str, loc: Loc, room: str, known: Collection[str], named: set[str]
    ) -> None:
        value = holder.child(key)
        if value is None:
            self._routes_known = False
        else:
            self._refer_value(value, (*loc, key), room, known, named)

    def _refer_value(
        self, value: Value, loc: Loc, room: str, known: Collection[str], named: set[str]
    ) -> None:
        name = value.content
        if not isinstance(name, str):
            self._routes_known = False
        elif name in known:
            named.add(name)
        else:
            self._routes_known = False  # it may be the name of the one that seems unused
            if known or self._root.child(room) is None:
                shown = value.written or name
                self._wrong(value, loc, f"`{shown}` is not in `{room}`{did_you_mean(name, known)}")

    def _expression(self, holder: Value, key: str, loc: Loc) -> None:
        value = holder.child(key)
        if value is None or not isinstance(value.content, str):
            return
        messages = mistakes_in(value.content)
        if messages and value.written is not None:  # they would quote what came from the environment
            messages = ["not an expression that can be evaluated, once every ${NAME} is replaced"]
        for message in messages:
            self._wrong(value, (*loc, key), message)


def mistakes_in(expression: str) -> list[str]:
    """Say what is wrong with a CEL expression over an event; nothing when it can be evaluated."""
    try:
        program = library.compile(expression)
    except ValueError as error:
        return [_explain(str(error), expression)]
    tokens = Tokens(expression)
    known = frozenset(VARIABLES) | TYPES | bound_names(tokens)
    messages = [
        f"`{name}` is not known to an expression{did_you_mean(name, VARIABLES)}"
        for name in program.variables()
        if name not in known
    ]
    messages += [
        f"there is no function `{name}`{did_you_mean(name, FUNCTIONS | METHODS)}"
        for name in program.functions()
        if name.isidentifier() and not name.startswith("_") and name not in FUNCTIONS | METHODS
    ]
    messages += _wrongly_called(tokens)
    for called, written in patterns(expression, tokens):
        try:
            library.pattern(written)
        except ValueError as error:
            where = _where(expression, *_line_and_column(expression, called.start))
            messages.append(f"`{written}` is no regular expression: {error} (`matches` at {where})")
    return messages


def _wrongly_called(tokens: Tokens) -> Iterator[str]:
    for at in range(len(tokens)):
        if tokens.calls(at):
            name = tokens[at].text
            if tokens.is_member(at) and name in FUNCTIONS - METHODS:
                yield f"`.{name}(…)` is called as `{name}(…)`, with the value in the brackets"
            elif not tokens.is_member(at) and name in METHODS - FUNCTIONS:
                yield f"`{name}(…)` is called as `value.{name}(…)`"


def _line_and_column(expression: str, at: int) -> tuple[int, int]:
    return expression.count("\n", 0, at) + 1, at - expression.rfind("\n", 0, at)


def _where(expression: str, line: int, column: int) -> str:
    where = f"column {column}" if "\n" not in expression.rstrip("\n") else f"line {line}, column {column}"
    return f"{where} of the expression"


def _explain(error: str, expression: str) -> str:
    found = _CEL_ERROR.search(error)
    if found is None:
        return "not a CEL expression: it is nested too deeply, or can't be understood"
    line, column, problem = int(found[1]), int(found[2]), found[3]
    if "'<EOF>'" in problem:
        meaning = "it ends too early" if expression.strip() else "it is empty"
    elif quoted := re.search(r"(?:input|at:) ('.*?')(?: expecting|$)", problem):
        meaning = f"{quoted[1]} is not understood there"
    else:
        meaning = problem
    return f"not a CEL expression: {meaning} ({_where(expression, line, column)})"
