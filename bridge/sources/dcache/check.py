"""What `check` finds out about a dCache, without reading a stream."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress

from bridge.core.errors import SourceLost
from bridge.core.ports import Finding, Findings, Patience
from bridge.credentials import OidcAuth
from bridge.net.certificates import REFUSED, REMEDY
from bridge.net.reach import note_proxy, reach_url
from bridge.sources.dcache.config import DcacheConfig, X509Auth
from bridge.sources.dcache.rest.answers import Denied, Missing, Refused, Unanswered
from bridge.sources.dcache.rest.connection import ChannelGone, Connection, Limits

_ALL_SECONDS = 9.0
_CLOCK_SECONDS = 30.0
_SHORT_LIFE = 3600
"""A channel that dies sooner loses its events in any longer stop."""
_FLAGS = ("IN_CLOSE_WRITE",)


async def check(config: DcacheConfig, key: str, _patience: Patience) -> Sequence[Finding]:
    """Look at the dCache of `sources.{key}`. A channel is made for trying the watches, and ended."""
    findings = Findings(f"source {key}")
    _warn_of_openness(findings, key, config)
    if isinstance(config.auth, OidcAuth):
        note_proxy(findings, config.auth.token_endpoint)
    if not await _reached(findings, key, config):
        return findings.found
    try:
        async with asyncio.timeout(_ALL_SECONDS), Connection(config) as connection:
            await _look(findings, key, config, connection)
    except TimeoutError:
        findings.problem(
            f"{config.endpoint}: not all was answered within {_ALL_SECONDS:g} s",
            f"is `sources.{key}.endpoint` a frontend of dCache, and is it well?",
        )
    except Refused as error:
        findings.problem(str(error), f"correct `sources.{key}.auth`: dCache does not know this user")
    except (Unanswered, Missing, Denied, SourceLost) as error:
        rest = f"is `sources.{key}.endpoint` dCache's REST API, such as https://HOST:3880/api/v1?"
        findings.problem(str(error), REMEDY if REFUSED in str(error) else rest)
    return findings.found


def _warn_of_openness(findings: Findings, key: str, config: DcacheConfig) -> None:
    if not config.tls.verify:
        findings.warning(
            "`tls.verify: false`: any server that answers is taken for dCache, and gets the credentials",
            f"set `sources.{key}.tls.ca_file` or `ca_path`, and remove `verify`",
        )
    if config.endpoint.startswith("http:") and not isinstance(config.auth, X509Auth):
        findings.note("over http the credentials are readable on the way", "use https but in a test")


async def _reached(findings: Findings, key: str, config: DcacheConfig) -> bool:
    return await reach_url(
        findings,
        config.endpoint,
        _context(config),
        address_key=f"sources.{key}.endpoint",
        ca_key=f"sources.{key}.tls.ca_file",
    )


def _context(config: DcacheConfig) -> ssl.SSLContext:
    context = config.tls.context()
    if isinstance(config.auth, X509Auth):
        with suppress(ValueError):
            config.auth.load(context)
    return context


async def _look(findings: Findings, key: str, config: DcacheConfig, connection: Connection) -> None:
    limits = await connection.limits()
    if limits.per_user is None and not limits.longest_timeout:
        findings.problem(
            f"{config.endpoint}/events tells of no channels",
            f"is `sources.{key}.endpoint` dCache's REST API (4.2 or later)?",
        )
        return
    channels = await connection.channels()
    allowed = "any number" if limits.per_user is None else limits.per_user
    findings.ok(f"{config.endpoint}: the user is known, with {len(channels)} of {allowed} channels")
    _judge_life(findings, limits)
    if abs(connection.ahead) > _CLOCK_SECONDS:
        findings.warning(
            f"the clocks of dCache and of this machine are {abs(connection.ahead):.0f} s apart",
            "have both follow NTP: what is new after a lost store is told by time",
        )
    listed = [path for path in config.paths if await _can_list(findings, key, connection, path)]
    if limits.per_user is not None and len(channels) >= limits.per_user:
        findings.warning(
            "the user has no channel left, so watching could not be tried, and a bridge that has none yet "
            "can't start",
            "end channels that nobody uses (DELETE events/channels/ID), or give the bridge a user of its own",
        )
    elif listed:
        await _try_watches(findings, key, connection, listed, config)


def _judge_life(findings: Findings, limits: Limits) -> None:
    if limits.longest_timeout < _SHORT_LIFE:
        findings.warning(
            f"dCache forgets a channel after {limits.longest_timeout} s without a client: after any longer "
            "stop everything is listed",
            "ask the site for a longer frontend.limit.events.disconnect-timeout.maximum",
        )


async def _can_list(findings: Findings, key: str, connection: Connection, path: str) -> bool:
    try:
        await connection.list_page(path, offset=0, limit=1)
    except Missing:
        findings.problem(
            f"{path} is not there, or no directory", f"make it, or correct `sources.{key}.paths`"
        )
    except Denied:
        findings.problem(f"{path} may not be listed by this user", "have the site grant reading and listing")
    else:
        return True
    return False


async def _try_watches(
    findings: Findings, key: str, connection: Connection, paths: Sequence[str], config: DcacheConfig
) -> None:
    channel = await connection.make_channel(f"{config.client_id}-check")
    try:
        for path in paths:
            try:
                await connection.watch(channel, path, _FLAGS)
            except (Missing, Denied) as error:
                findings.problem(
                    f"{path} can't be watched: {error}",
                    f"have the site allow it, or correct `sources.{key}.paths`",
                )
            else:
                findings.ok(f"{path} can be listed and watched")
        if not await connection.start_metronome(channel):
            findings.note(
                "dCache has no metronome: a stalled stream is noticed after minutes, not after one",
            )
    except ChannelGone as error:
        findings.problem(
            str(error), "dCache ended a channel that was just made: is the frontend one of many?"
        )
    finally:
        await connection.delete_channel(channel)
