"""Expressions, and the names in them."""

from __future__ import annotations

from datetime import UTC, datetime

import cel
import pytest

from bridge.core.errors import ConfigurationError
from bridge.settings.expressions import FUNCTIONS, METHODS, TYPES, mistakes_in
from bridge.settings.names import did_you_mean
from tests.settings.conftest import MINIMAL, Loader


@pytest.mark.parametrize("name", sorted(FUNCTIONS | METHODS))
def test_each_function_we_name_is_one_of_the_library(name: str) -> None:
    """Called as we say it is known, be its arguments right or not; called otherwise it is not."""
    context = {"text": "a", "time": datetime(2026, 1, 31, tzinfo=UTC)}

    def known(*expressions: str) -> bool:
        said = []
        for expression in expressions:
            try:
                cel.evaluate(expression, context)
                return True
            except (RuntimeError, TypeError, ValueError) as error:
                said.append(str(error))
        return any("Undefined variable or function" not in each for each in said)

    assert known(f"{name}(text)") is (name in FUNCTIONS)
    assert known(f"text.{name}('a')", f"text.{name}()", f"time.{name}()") is (name in METHODS)


@pytest.mark.parametrize("name", sorted(TYPES))
def test_each_type_we_name_is_one_of_the_library(name: str) -> None:
    assert cel.evaluate(f"type({name}) == type") is True


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        (
            "subject.matches('[')",
            "`[` is no regular expression: unclosed character class (`matches` at column 9",
        ),
        ("subject.matches(r'(?=a)')", "`(?=a)` is no regular expression: look-around"),
        (
            "true &&\n data.x.matches('a' + '(')",
            "`a(` is no regular expression: unclosed group (`matches` at line 2",
        ),
        (r"subject.matches('(\\w{1,100}){1,100}')", "Compiled regex exceeds size limit"),
        ("data.l.exists(p, subject.matches(p)) || subject.matches(data.p)", ""),
        ("'x.matches(\"[\")' == subject", ""),
    ],
)
def test_a_pattern_written_out_that_is_none_is_a_mistake(expression: str, mistake: str) -> None:
    found = mistakes_in(expression)
    assert len(found) == bool(mistake)
    assert all(mistake in each for each in found)


@pytest.mark.parametrize(
    "expression",
    [
        'data.size > 0 && subject.endsWith(".nc")',
        "has(data.x) && data.x in ['a', 'b']",
        "data.items.exists(i, i.size > 3 && i.name.matches('^a'))",
        "data.items.filter(each, each > 1).map(each, each * 2).size() == 2",
        "attributes['header.x'] == 'y' || id.startsWith('a') || source == type",
        "time > timestamp('2026-01-01T00:00:00Z') && time.getHours() < 6",
        "int(data.a) + size(data.b) > 1 ? true : false",
        "data.name == 'x.all(nobody, is bound here)'",
        "type(data) == map && type(data.x) != null_type",
        "true",
    ],
)
def test_a_good_expression_passes(load_text: Loader, expression: str) -> None:
    loaded = load_text(
        MINIMAL.replace("to: plants", f'to: plants, when: "{expression}"'.replace('".nc"', "'.nc'"))
    )
    assert loaded.routes[0].when


def test_a_name_bound_in_a_text_is_not_bound(load_text: Loader) -> None:
    text = MINIMAL.replace("to: plants", """to: plants, when: "data.name == 'x.all(y, ' && y == 1" """)
    with pytest.raises(ConfigurationError, match="`y` is not known to an expression"):
        load_text(text)


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("matches(subject, '^a')", "`matches(…)` is called as `value.matches(…)`"),
        ("data.n.int() > 3", "`.int(…)` is called as `int(…)`, with the value in the brackets"),
    ],
)
def test_a_function_called_in_the_other_way_is_a_mistake(expression: str, mistake: str) -> None:
    assert mistakes_in(expression) == [mistake]


def test_a_nested_expression_that_is_too_deep_is_a_mistake(load_text: Loader) -> None:
    deep = "(" * 5000 + "true" + ")" * 5000
    with pytest.raises(ConfigurationError, match="not a CEL expression"):
        load_text(MINIMAL.replace("to: plants", f'to: plants, when: "{deep}"'))


def test_suggestions_are_close_or_all_there_is() -> None:
    assert did_you_mean("Uploads", ["uploads", "bucket"]) == "; did you mean `uploads`?"
    assert did_you_mean("zzz", ["b", "a"]) == "; there are `a`, `b`"
    assert did_you_mean("zzz", ["a"]) == "; there is `a`"
    assert did_you_mean("zzz", []) == ""


@pytest.mark.parametrize(("queue", "told"), [("events", 1), ("events.fifo", 0)])
def test_an_order_that_a_queue_has_not_is_told(load_text: Loader, queue: str, told: int) -> None:
    source = f"{{uploads: {{type: sqs, queue: {queue}, region: eu-west-1}}}}"
    text = MINIMAL.replace(MINIMAL.splitlines()[4], f"sources: {source}")
    text = text.replace("to: plants", "to: plants, order_by: subject")
    found = [warning for warning in load_text(text).warnings if "keeps no order" in warning]
    assert len(found) == told
    assert all("routes[0].order_by" in warning for warning in found)
