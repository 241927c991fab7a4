"""`Kafka`: NiFi's ConsumeKafka_2_6 as a source."""

from __future__ import annotations

import re

from bridge.dcnios import trust
from bridge.dcnios.alterations import Alteration
from bridge.dcnios.draft import Draft, Entry
from bridge.dcnios.elements import Element
from bridge.dcnios.pace import Processor
from bridge.dcnios.remarks import What

PROCESSORS = {"ConsumeKafka_2_6": Processor(None)}
_PATTERN = re.compile(r"[\\^$*+?()\[\]{}|]")
_POLL = 10_000
"""Records that NiFi takes at once, at most."""


def read(element: Element, entry: Entry, draft: Draft) -> None:
    """Make the source of one element."""
    entry.put("bootstrap_servers", element.required("bootstrap_servers"), element.origin("bootstrap_servers"))
    element.say(What.KEPT, "bootstrap_servers", f"`sources.{entry.key}.bootstrap_servers`")
    _topic(element, entry)
    entry.put(
        "group_id",
        element.required("group_id"),
        element.origin("group_id"),
        "as before: the bridge goes on where NiFi has committed",
    )
    if isinstance(element.content("group_id"), str):
        element.say(What.KEPT, "group_id", "the bridge goes on where NiFi has committed")
    else:
        element.say(What.CHANGED, "group_id", "text, in quotes; the bridge goes on where NiFi has committed")
    entry.put("auto_offset_reset", "latest", comment="as NiFi's, where nothing is committed yet")
    _security(element, entry, draft)
    element.say(What.LOST, None, "records that OSCAR did not take: NiFi commits them as it reads them")


def _topic(element: Element, entry: Entry) -> None:
    topic = element.required("topic")
    if _PATTERN.search(topic):
        entry.put("topic_pattern", topic, element.origin("topic"), "whole names, as with NiFi")
        element.say(What.KEPT, "topic", "`topic_pattern`: NiFi takes a topic as a regular expression")
        return
    entry.put("topics", [topic], element.origin("topic"))
    if "." in topic:
        why = "`topics`, and a dot is a dot; NiFi took it for any character, `topic_pattern` does so still"
        element.say(What.CHANGED, "topic", why)
    else:
        element.say(What.KEPT, "topic", "`topics`")


def _security(element: Element, entry: Entry, draft: Draft) -> None:
    protocol = element.text("security_protocol")
    entry.put("security_protocol", protocol or "SASL_SSL", element.origin("security_protocol"))
    if protocol is None:
        element.say(What.KEPT, None, "`security_protocol: SASL_SSL`, DCNiOS's default")
        protocol = "SASL_SSL"
    else:
        element.say(What.KEPT, "security_protocol", "as it is")
    if protocol.startswith("SASL"):
        _sasl(element, entry, draft)
    else:
        for key in ("sasl_mechanism", "sasl_username", "sasl_password"):
            element.leave_out(key, f"means nothing with {protocol}")
    if protocol.endswith("SSL"):
        trust.pkcs12(element, entry, draft)
    else:
        element.leave_out("ssl_context", f"means nothing with {protocol}")


def _sasl(element: Element, entry: Entry, draft: Draft) -> None:
    mechanism = element.text("sasl_mechanism")
    entry.put("sasl_mechanism", "PLAIN", element.origin("sasl_mechanism"), "what DCNiOS uses in any case")
    if mechanism not in (None, "PLAIN"):
        why = f"PLAIN: DCNiOS never reads it; if the brokers take {mechanism}, write that"
        element.say(What.CHANGED, "sasl_mechanism", why)
    elif mechanism is not None:
        element.say(What.KEPT, "sasl_mechanism", "as it is")
    entry.put("username", element.required("sasl_username"), element.origin("sasl_username"))
    element.say(What.KEPT, "sasl_username", "`username`")
    file = draft.secret(f"{entry.key}-password", element.secret("sasl_password"))
    entry.put("password_file", file, element.origin("sasl_password"))
    element.say(What.KEPT, "sasl_password", f"in {file}")


def joined(element: Element) -> Alteration | None:
    """Return how records of one key are joined, None where they are not."""
    separate = element.content("separate_by_key")
    if separate != "true":
        if element.has("separate_by_key"):
            element.leave_out("separate_by_key", 'DCNiOS joins records only where it says "true", in quotes')
        element.leave_out("message_demarcator", "DCNiOS reads it with `separate_by_key` alone")
        return None
    demarcator = element.text("message_demarcator") or ""
    if not element.has("message_demarcator"):
        element.wrong("message_demarcator", "missing; DCNiOS needs it with `separate_by_key`")
    element.say(
        What.CHANGED, "separate_by_key", "`merge` of the route by the record's key, for 1 s at a time"
    )
    element.say(What.CHANGED, "message_demarcator", "`demarcator` of `merge`")
    value: dict[str, str | int | bool] = {"key": "subject", "max_events": _POLL, "window": "1s"}
    return Alteration(
        {**value, "demarcator": demarcator, "as": "text"},
        element.origin("separate_by_key"),
        "separate_by_key of DCNiOS: NiFi joined what one poll brought",
    )
