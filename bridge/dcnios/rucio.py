"""`RUCIO`: RabbitMQ, and the flow that lets datasets of one service through, as a source and a condition."""

from __future__ import annotations

import json

from bridge.dcnios import trust
from bridge.dcnios.draft import Draft, Entry
from bridge.dcnios.elements import Element
from bridge.dcnios.pace import Processor
from bridge.dcnios.remarks import What

PROCESSORS = {
    "EvaluateJsonPath": Processor(1),
    "RouteOnAttribute": Processor(1),
    "ConsumeAMQP": Processor(10),
}


def read(element: Element, entry: Entry, draft: Draft) -> None:
    """Make the source of one element."""
    entry.put("protocol", "amqp")
    host, port = element.required("host"), element.required("port")
    entry.put("brokers", [f"{host}:{port}"], element.origin("host"))
    for key in ("host", "port"):
        element.say(What.KEPT, key, "`brokers`")
    entry.put("virtual_host", "rucio", comment="DCNiOS's, whatever its file says")
    entry.put("queue", element.required("queue_name"), element.origin("queue_name"))
    element.say(What.KEPT, "queue_name", "`queue`")
    user = element.required("virtual_host")
    entry.put("username", user, element.origin("virtual_host"), "DCNiOS sends its virtual_host as the user")
    why = "`username`: DCNiOS sends it as the user's name; the virtual host is always `rucio`"
    element.say(What.CHANGED, "virtual_host", why)
    element.leave_out("user", "DCNiOS does not read it: the user's name stands at `virtual_host`")
    file = draft.secret(f"{entry.key}-password", element.secret("password"))
    entry.put("password_file", file, element.origin("password"))
    element.say(What.KEPT, "password", f"in {file}")
    element.leave_out("ssl_client_auth", "a server's setting")
    trust.pem(element, entry, draft)
    entry.put("event_types", ["close"], comment="as DCNiOS's flow")
    element.say(What.LOST, None, "messages that OSCAR did not take: NiFi acknowledges them as it takes them")


def condition(element: Element) -> str:
    """Return what a route from this element asks for."""
    service = element.required("service_filter")
    element.say(What.KEPT, "service_filter", "`when` of the route")
    return f'data.payload.custom_metadata["oscar-service"] == {json.dumps(service, ensure_ascii=False)}'
