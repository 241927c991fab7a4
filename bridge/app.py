"""The composition root: settings become objects, objects become tasks; and the order of stopping."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any

import structlog

from bridge import __version__
from bridge.again import Again
from bridge.commands import carry_out, known
from bridge.control import Control, Live, Losses, Overrides, Part
from bridge.core.journal import Journal
from bridge.destinations.oscar.client import OscarService, announce
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.destinations.oscar.jobs import follow
from bridge.net.certificates import Watch
from bridge.pipeline.intake import Intake
from bridge.pipeline.lane import Lane
from bridge.pipeline.limits.allowance import Allowance
from bridge.pipeline.limits.limit import Limit
from bridge.pipeline.limits.pause import Pause
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.merging import Merging
from bridge.pipeline.rerouting import Rerouting
from bridge.pipeline.router import Router
from bridge.pipeline.runner import Runner
from bridge.pipeline.windows import Recipient, Windows
from bridge.questions import Questions
from bridge.settings import Settings
from bridge.sources import Keeping, Rescan
from bridge.sources.registry import kind_of
from bridge.status import Status
from bridge.store import JournalFiles, Store, Stranded, losses, overrides
from bridge.store.directory import whole
from bridge.telemetry.lag import measure
from bridge.telemetry.logging import count_dropped_lines
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.summary import Summary
from bridge.web import Problem, serve
from bridge.web.socket import listen
from bridge.why import in_hand

_log = structlog.get_logger(__name__)


class Stop:
    """What a person asks of a running bridge: to stop, and at the second asking, to stop now."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()

    def ask(self, name: str) -> None:
        """Take one asking; `name` is told in the log."""
        if self.asked.is_set():
            _log.warning("stopping now: events under way are given back", signal=name)
            self.now.set()
        else:
            _log.info("stopping: lanes drain first; once more to stop now", signal=name)
            self.asked.set()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Ask on SIGTERM and SIGINT while inside."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.ask, number.name)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


async def run(
    settings: Settings,
    stop: Stop | None = None,
    *,
    accept_loss: bool = False,
    rescan: Rescan | None = None,
) -> None:
    """Run the bridge until it is asked to stop; `accept_loss` goes on with what is left of a damaged store.

    `rescan` answers sources that list their upstream and lost what had entered (`sources.Keeping`).

    Raises StoreError when the store can't be used, OSError when the HTTP port is taken, and whatever
    a defect raises: then nothing unsettled is settled, so nothing is lost.
    """
    stop = stop or Stop()
    metrics = Metrics()
    count_dropped_lines(metrics.log_lines_dropped.inc)
    for warning in settings.warnings:
        _log.warning("configuration", warning=warning)
    async with AsyncExitStack() as stack:
        stack.enter_context(stop.on_signals())
        store = await stack.enter_async_context(
            Store.open(settings.state_dir, metrics, settings.store, accept_loss=accept_loss)
        )
        journal = await stack.enter_async_context(
            JournalFiles.open(settings.state_dir, metrics, settings.journal, store.now)
        )
        clusters = await _clusters(settings, metrics, stack)
        services = _services(settings, clusters)
        rings, pauses, live_clusters = _rings(settings, metrics)
        lanes, live_services = _lanes(settings, services, rings, pauses, store, journal, metrics)
        intakes = {
            key: Intake(config.max_in_flight, config.max_in_flight_bytes, metrics.source(key), journal)
            for key, config in settings.sources.items()
        }
        live_sources = {Part("source", key): Live(intake.pause) for key, intake in intakes.items()}
        control = Control(
            Overrides(settings, overrides.read(settings.state_dir), time.time()),
            live_clusters | live_services | live_sources,
            partial(whole, overrides.write, settings.state_dir),
            metrics,
        )
        lost = Losses(
            settings,
            losses.read(settings.state_dir),
            partial(whole, losses.write, settings.state_dir),
            metrics,
        )
        windows = _windows(settings, services, store, journal, metrics)
        routers = _routers(settings, lanes, intakes, store, journal, metrics, windows)
        runners = _runners(settings, intakes, routers, windows, store, lost, metrics, rescan)
        identities = {key: config.identity or key for key, config in settings.sources.items()}
        rerouting = Rerouting({identities[key]: router for key, router in routers.items()}, store, journal)
        there = known(settings)

        def stranded() -> Sequence[Stranded]:
            return store.stranded(there)

        certificates = _certificates(settings, metrics)

        def readiness() -> Sequence[Problem]:
            parts = [
                *((f"source {runner.key}", runner.problems()) for runner in runners),
                *((part, certificates.problems(part)) for part in certificates.keys),
                *((f"service {lane.key}", lane.problems()) for lane in lanes.values()),
                ("store", store.problems()),
                ("journal", journal.problems()),
                ("store", [f"{each.message}: {each.remedy}" for each in stranded()]),
                ("bridge", ["stopping"] if stop.asked.is_set() else []),
            ]
            return [*lost.problems(), *(Problem(part, each) for part, reasons in parts for each in reasons)]

        metrics.ready.set_function(lambda: not readiness())
        status = Status(settings, metrics, runners, lanes, control, store, readiness)
        hands = partial(in_hand, lanes.values(), intakes.values())
        questions = Questions(settings, status, hands)
        once_more = Again(settings, store, hands, journal)

        async def command(document: Mapping[str, Any]) -> Mapping[str, Any]:
            if questions.is_meant(document):
                return await questions.answer(document)
            if control.is_meant(document):
                return await control.carry_out(document)
            if once_more.is_meant(document):
                return await once_more.carry_out(document)
            if lost.is_meant(document):
                return await lost.acknowledge(document, readiness)
            return await carry_out(store, there, document, journal)

        url = await stack.enter_async_context(serve(settings.http, metrics.registry, readiness, command))
        await control.begin()
        await stack.enter_async_context(listen(settings.state_dir, command))
        # What is there by now stays until the end, and there is little garbage in cycles: collections look at
        # the rest alone, and seldom.
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        gc.enable()
        _log.info("bridge started", version=__version__, http=url, state_dir=str(settings.state_dir))
        lost.begin()
        for each in stranded():
            _log.warning("events that nothing will take", problem=each.message, remedy=each.remedy)
        async with asyncio.TaskGroup() as lane_tasks:
            working = [lane_tasks.create_task(lane.run(), name=f"lane {lane.key}") for lane in lanes.values()]
            for key, cluster in clusters.items():
                here = {name: one for name, one in settings.services.items() if one.cluster == key}
                removing = [services[name].name for name, one in here.items() if one.remove_finished]
                telling = announce(cluster, [services[name] for name in here], removing)
                working.append(lane_tasks.create_task(telling, name=f"cluster {key}"))
                followed = [(services[name], jobs) for name in here if (jobs := lanes[name].jobs) is not None]
                if followed:
                    task = lane_tasks.create_task(follow(cluster, followed), name=f"jobs on cluster {key}")
                    working.append(task)
            working.append(lane_tasks.create_task(windows.run(), name="windows"))
            working.append(lane_tasks.create_task(store.broken(), name="store"))
            working.append(lane_tasks.create_task(certificates.run(), name="certificates"))
            working.append(lane_tasks.create_task(control.run(), name="overrides"))
            working.append(lane_tasks.create_task(status.run(), name="status"))
            working.append(lane_tasks.create_task(lost.run(), name="losses"))
            working.append(lane_tasks.create_task(Summary(metrics).run(), name="summary"))
            working.append(lane_tasks.create_task(measure(metrics.loop_lag), name="lag"))
            async with asyncio.TaskGroup() as source_tasks:
                reading = [
                    source_tasks.create_task(runner.run(), name=f"source {runner.key}") for runner in runners
                ]
                again = source_tasks.create_task(rerouting.run(), name="dead letters routed again")
                await stop.asked.wait()
                again.cancel()
                await _drain(runners, lanes.values(), settings.drain_seconds, stop.now)
                for task in reading:
                    task.cancel()
            for task in working:
                task.cancel()
    _log.info("bridge stopped")


async def _clusters(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> dict[str, OscarCluster]:
    clusters = {}
    for key, config in settings.clusters.items():
        cluster = OscarCluster(key, config, metrics=metrics)
        clusters[key] = await stack.enter_async_context(cluster)
    return clusters


def _services(settings: Settings, clusters: Mapping[str, OscarCluster]) -> dict[str, OscarService]:
    trusted = frozenset(config.identity or key for key, config in settings.sources.items() if config.trusted)
    return {
        key: OscarService(key, service, clusters[service.cluster], trusted_sources=trusted)
        for key, service in settings.services.items()
    }


def _rings(
    settings: Settings, metrics: Metrics
) -> tuple[dict[str, Ring], dict[str, Pause], dict[Part, Live]]:
    """Make what the lanes of each cluster share: its limits, and its pause."""
    rings, pauses, live = {}, {}, {}
    for key, cluster in settings.clusters.items():
        limits: list[Limit] = []
        allowance = Allowance(limits, cluster.limits.concurrency, cluster.limits.rate)
        metrics.cluster_limit.labels(key).set_function(partial(getattr, allowance, "at_once"))
        rings[key], pauses[key] = Ring(limits), Pause()
        live[Part("cluster", key)] = Live(pauses[key].set, allowance, rings[key].look)
    return rings, pauses, live


def _lanes(
    settings: Settings,
    services: Mapping[str, OscarService],
    rings: Mapping[str, Ring],
    clusters_pauses: Mapping[str, Pause],
    store: Store,
    journal: Journal,
    metrics: Metrics,
) -> tuple[dict[str, Lane], dict[Part, Live]]:
    lanes, live = {}, {}
    for key, config in settings.services.items():
        pause = Pause()
        lanes[key] = lane = Lane(
            key,
            config,
            services[key],
            store,
            metrics.lane(key),
            # OSCAR's throttle is that of its jobs.
            rings[config.cluster] if config.mode == "job" else None,
            (pause, clusters_pauses[config.cluster]),
            services[key] if config.follows else None,
            journal,
        )
        live[Part("service", key)] = Live(pause.set, lane.allowance, lane.look, lane.jobs)
    return lanes, live


def _windows(
    settings: Settings,
    services: Mapping[str, OscarService],
    store: Store,
    journal: Journal,
    metrics: Metrics,
) -> Windows:
    recipients = {
        key: Recipient(config.event_bytes, services[key].fits, config.reads_all_records)
        for key, config in settings.services.items()
    }
    routes = {
        (settings.sources[route.from_].identity or route.from_, service, merging.name): merging
        for route in settings.routes
        if route.merges
        for merging in [Merging(route, route.encode)]
        for service in route.reachable
    }
    return Windows(store.windows, recipients, routes, metrics, journal)


def _routers(
    settings: Settings,
    lanes: Mapping[str, Lane],
    intakes: Mapping[str, Intake],
    store: Store,
    journal: Journal,
    metrics: Metrics,
    windows: Windows,
) -> dict[str, Router]:
    routers = {}
    for key in settings.sources:
        routes = [route for route in settings.routes if route.from_ == key]
        routers[key] = Router(routes, lanes, store, metrics.source(key), intakes[key], windows, journal)
    return routers


def _runners(
    settings: Settings,
    intakes: Mapping[str, Intake],
    routers: Mapping[str, Router],
    windows: Windows,
    store: Store,
    lost: Losses,
    metrics: Metrics,
    rescan: Rescan | None,
) -> list[Runner]:
    runners = []
    for key, config in settings.sources.items():
        own = metrics.source(key)
        keeping = Keeping(
            spool=partial(store.spool, config.identity or key),
            state_dir=settings.state_dir,
            lost=partial(lost.add, key),
            rescan=rescan,
        )
        source = kind_of(config).build(config, key, own, keeping)
        listens = partial(windows.listens, config.identity or key)
        runners.append(
            Runner(
                key,
                source,
                intakes[key],
                routers[key],
                own,
                holds_unread=config.holds_unread,
                listens=listens,
            )
        )
    return runners


def _certificates(settings: Settings, metrics: Metrics) -> Watch:
    shown = {f"source {key}": config.own_certificate() for key, config in settings.sources.items()}
    shown["http"] = settings.http.own_certificate()
    watch = Watch({part: certificate for part, certificate in shown.items() if certificate is not None})
    for key in settings.sources:
        if (part := f"source {key}") in watch.keys:
            metrics.certificate_expiry.labels(key).set_function(partial(watch.seconds_left, part))
            metrics.certificate_lifetime.take(key, call=partial(watch.lifetime, part))
    if "http" in watch.keys:
        metrics.http_certificate_expiry.take(call=partial(watch.seconds_left, "http"))
        metrics.http_certificate_lifetime.take(call=partial(watch.lifetime, "http"))
    return watch


async def _drain(
    runners: Sequence[Runner], lanes: Iterable[Lane], seconds: float, now: asyncio.Event
) -> None:
    """Stop taking, let the lanes finish, and give back what they could not."""
    for runner in runners:
        runner.intake.close()
    for lane in lanes:
        lane.close()

    async def all_drained() -> None:
        for runner in runners:
            await runner.intake.drained()
        for lane in lanes:
            await lane.finished()

    drained = asyncio.ensure_future(all_drained())
    hurried = asyncio.ensure_future(now.wait())
    try:
        await asyncio.wait({drained, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (drained, hurried):
            task.cancel()
    for runner in runners:
        released = runner.intake.release()
        if released:
            _log.warning("events given back upstream", source=runner.key, events=released)
