"""The REST resource `events`: channels and subscriptions. After `EventResources.java`, `Registrar.java`."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from aiohttp import web

from bridge.sandbox.dcache.channel import Channel, Subscription, url_of
from bridge.sandbox.dcache.errors import RefusalError
from bridge.sandbox.dcache.faults import Faults
from bridge.sandbox.dcache.inotify import FLAGS, Inotify, Selector
from bridge.sandbox.dcache.logins import user_of
from bridge.sandbox.dcache.metronome import DESCRIPTION, Metronome
from bridge.sandbox.dcache.namespace import Namespace
from bridge.sandbox.dcache.settings import Settings
from bridge.sandbox.dcache.streams import Streams

_MINIMUM_TIMEOUT = 1
_LONGEST_CLIENT_ID = 256
_DESCRIPTION = "notification of namespace activity, modelled after inotify(7)"


class Events:
    """Channels by id, and what HTTP does with them."""

    def __init__(
        self,
        settings: Settings,
        faults: Faults,
        namespace: Namespace,
        inotify: Inotify,
        streams: Streams,
        dice: random.Random,
    ) -> None:
        self.channels: dict[str, Channel] = {}
        self._settings = settings
        self._faults = faults
        self._namespace = namespace
        self._inotify = inotify
        self._streams = streams
        self._dice = dice

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes, below `base`."""
        events = f"{base}/events"
        channel = f"{events}/channels/{{channel}}"
        subscription = f"{channel}/subscriptions/{{type}}/{{subscription}}"
        return [
            web.get(events, self._limits),
            web.get(f"{events}/eventTypes", self._event_types),
            web.get(f"{events}/eventTypes/{{type}}", self._event_type),
            web.get(f"{events}/eventTypes/{{type}}/selector", self._selector_schema),
            web.get(f"{events}/channels", self._list),
            web.post(f"{events}/channels", self._register),
            web.get(channel, self._get),
            web.patch(channel, self._modify),
            web.delete(channel, self._delete),
            web.get(f"{channel}/subscriptions", self._subscriptions),
            web.post(f"{channel}/subscriptions/{{type}}", self._subscribe),
            web.get(subscription, self._selector),
            web.delete(subscription, self._unsubscribe),
        ]

    # --- what there is ---

    async def _limits(self, _request: web.Request) -> web.Response:
        """The one resource that an anonymous client may read."""
        lifetime = {
            "minimum": _MINIMUM_TIMEOUT,
            "maximum": self._settings.maximum_timeout_seconds,
            "default": int(self._settings.timeout_seconds),
        }
        limits = {"maximumPerUser": self._settings.channels_per_user, "lifetimeWhenDisconnected": lifetime}
        return web.json_response({"channels": limits})

    async def _event_types(self, request: web.Request) -> web.Response:
        user_of(request)
        return web.json_response(self._types())

    async def _event_type(self, request: web.Request) -> web.Response:
        kind = self._type(request)
        return web.json_response({"description": _DESCRIPTION if kind == "inotify" else DESCRIPTION})

    async def _selector_schema(self, request: web.Request) -> web.Response:
        if self._type(request) != "inotify":
            raise RefusalError(404, "The sandbox has no schema of it")
        flags = {"type": "array", "items": {"type": "string", "enum": list(FLAGS)}}
        properties = {"path": {"type": "string", "pattern": "^/(.*[^/])?$"}, "flags": flags}
        return web.json_response(
            {"type": "object", "required": ["path"], "properties": properties, "additionalProperties": False}
        )

    # --- channels ---

    async def _list(self, request: web.Request) -> web.Response:
        user = user_of(request)
        mine = [channel for channel in self.channels.values() if channel.owner == user]
        if "client-id" in request.query:
            wanted = _client_id(request.query["client-id"])
            mine = [channel for channel in mine if channel.client_id == wanted]
        return web.json_response([_url(request, channel.identity) for channel in mine])

    async def _register(self, request: web.Request) -> web.Response:
        user = user_of(request)
        document = await _json(request)
        if document is not None and not isinstance(document, dict):
            raise RefusalError(400, "Unable to interpret JSON: not an object")
        _refuse_others(document or {}, "client-id")
        if sum(one.owner == user for one in self.channels.values()) >= self._settings.channels_per_user:
            raise RefusalError(429)
        identity = base64.urlsafe_b64encode(self._dice.randbytes(16)).decode().rstrip("=")
        url = _url(request, identity)
        channel = Channel(
            identity,
            user,
            _client_id((document or {}).get("client-id")),
            url,
            self._settings.ring,
            self._settings.timeout_seconds,
            self._forget,
        )
        self.channels[identity] = channel
        return web.Response(status=201, headers={"Location": url})

    async def _get(self, request: web.Request) -> web.StreamResponse:
        channel = self._channel(request)
        if "text/event-stream" in request.headers.get("Accept", ""):
            if self._faults.stream_status:
                raise RefusalError(self._faults.stream_status, "Sandbox fault")
            return await self._streams.serve(request, channel)
        return web.json_response({"timeout": int(channel.timeout_seconds)})

    async def _modify(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        document = await _json(request)
        if not isinstance(document, dict):
            raise RefusalError(500, "Internal error: java.lang.NullPointerException")
        _refuse_others(document, "timeout")
        timeout = document.get("timeout", 0)
        if not isinstance(timeout, int) or isinstance(timeout, bool):
            raise RefusalError(400, "Unable to interpret JSON: timeout is a whole number of seconds")
        if timeout < _MINIMUM_TIMEOUT:
            raise RefusalError(400, "Timeout shorter than minimum allowed")
        if timeout > self._settings.maximum_timeout_seconds:
            raise RefusalError(400, "Timeout longer than maximum allowed")
        channel.set_timeout(timeout)
        return web.Response(status=204)

    async def _delete(self, request: web.Request) -> web.Response:
        self._channel(request).close()
        return web.Response(status=204)

    # --- subscriptions ---

    async def _subscriptions(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        url = _url(request, channel.identity)
        return web.json_response(
            [url_of(url, one.kind, identity) for identity, one in channel.subscriptions.items()]
        )

    async def _subscribe(self, request: web.Request) -> web.Response:
        selector = await _json(request)
        if selector is None:
            raise RefusalError(400, "Missing JSON entity in POST request")
        channel = self._channel(request)
        kind = request.match_info["type"]
        if kind not in self._types():
            raise RefusalError(400, f"Unknown event type: {kind}")
        if kind == "metronome":
            metronome = Metronome(channel, selector, self._dice)
            channel.subscriptions[metronome.identity] = metronome
            channel.system("NEW_SUBSCRIPTION", metronome)
            url = url_of(_url(request, channel.identity), kind, metronome.identity)
            return web.Response(status=201, headers={"Location": url})
        if self._faults.subscription_failures > 0:
            self._faults.subscription_failures -= 1
            raise RefusalError(500, "Unexpected status: INTERNAL_ERROR")
        watch, new = self._inotify.subscribe(channel, Selector.of_json(selector), self._namespace)
        location = url_of(_url(request, channel.identity), kind, watch.identity)
        headers = {} if self._faults.no_location else {"Location": location}
        return web.Response(status=201 if new else 303, headers=headers)

    async def _selector(self, request: web.Request) -> web.Response:
        return web.json_response(self._subscription(request)[1].selector())

    async def _unsubscribe(self, request: web.Request) -> web.Response:
        channel, subscription = self._subscription(request)
        channel.close_subscription(subscription)
        return web.Response(status=204)

    # --- within ---

    def _forget(self, channel: Channel) -> None:
        self.channels.pop(channel.identity, None)

    def _channel(self, request: web.Request) -> Channel:
        user = user_of(request)
        channel = self.channels.get(request.match_info["channel"])
        if channel is None:
            raise RefusalError(404, "No such channel")
        if channel.owner != user:
            raise RefusalError(403)
        return channel

    def _subscription(self, request: web.Request) -> tuple[Channel, Subscription]:
        channel = self._channel(request)
        found = channel.subscriptions.get(request.match_info["subscription"])
        if found is None or request.match_info["type"] != found.kind:
            raise RefusalError(404, "No such subscription")
        return channel, found

    def _types(self) -> list[str]:
        return ["inotify", *(["metronome"] if self._settings.metronome else [])]

    def _type(self, request: web.Request) -> str:
        user_of(request)
        kind = request.match_info["type"]
        if kind not in self._types():
            raise RefusalError(404, "No such event type")
        return kind


def _url(request: web.Request, channel: str) -> str:
    return f"{request.url.origin()}/api/v1/events/channels/{channel}"


def _client_id(text: object) -> str | None:
    return text[:_LONGEST_CLIENT_ID] if isinstance(text, str) and text else None


def _refuse_others(document: dict[str, Any], known: str) -> None:
    for key in document:
        if key != known:
            raise RefusalError(400, f"'{key}' is an unrecognized field.")


async def _json(request: web.Request) -> Any:
    """The body's document; None without a body. Raises RefusalError (400, 415)."""
    body = await request.read()
    if not body:
        return None
    if request.content_type != "application/json":
        raise RefusalError(415)
    try:
        return json.loads(body)
    except ValueError as error:
        raise RefusalError(400, f"Supplied JSON is invalid: {error}") from error
