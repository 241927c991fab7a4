"""The pods: a job as a local process under the very shell line of OSCAR, or only its time simulated."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from bridge.sandbox.oscar.expansion import expand
from bridge.sandbox.oscar.job import Job
from bridge.sandbox.oscar.ledger import Ledger
from bridge.sandbox.oscar.places import Places
from bridge.sandbox.oscar.quotas import Quotas
from bridge.sandbox.oscar.services import Service
from bridge.sandbox.oscar.settings import Settings
from bridge.sandbox.oscar.storage import Buckets, minio_outputs, wanted

_log = structlog.get_logger(__name__)
_MAX_ENV_STRING = 131_072
"""Linux' MAX_ARG_STRLEN: NAME=value and its NUL. The kernel itself says so to a job that really runs."""
_SURELY_FITS = _MAX_ENV_STRING // 4
"""Without an expansion nothing makes a body grow by more: three bytes for one that is no UTF-8."""
_TOO_LONG = b"exec /bin/sh: argument list too long\n"
_MAX_LOG_BYTES = 1_048_576
_REAL_PODS = 2
_SUPERVISORS = {"python": "supervisor.py", "go": "supervisor_go.py"}
"""Programs of their own, beside this file."""
_IMAGE_FILES = ("bin", "etc", "usr")
"""In the working directory, as in an image: what an unquoted `*` of an event turns into."""


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What the pod was told when its Job was created."""

    script: str
    environment: dict[str, str]
    command: str
    """With `SUPERVISOR` where the supervisor's path stands."""
    outputs: tuple[dict[str, Any], ...]
    """The service's outputs in the cluster's own storage."""


def pod_spec(service: Service, job: str, body: bytes, settings: Settings) -> PodSpec:
    """The pod of one job, with EVENT as the container gets it.

    The body becomes a string of JSON on its way to Kubernetes, so bytes that are no UTF-8 are lost. The
    kubelet expands `$(NAME)` in EVENT by what stands before it: the pod's secrets, the service's
    variables, and the service token (`addServiceMetadataEnvVars` in `pkg/types/service.go`).
    """
    environment = {
        **settings.pod_secrets,
        **service.environment("secrets"),
        **service.environment("variables"),
        "OSCAR_SERVICE_NAME": service.name,
        "OSCAR_SERVICE_TOKEN": service.token,
        "OSCAR_SERVICE_BASE_PATH": "",
        "fprocess": "/oscar/bin/supervisor",
    }
    if service.interlink:
        # pkg/types/interlink.go: base64 on the way, so a quarter of the limit is lost.
        event, command = base64.b64encode(body).decode(), "echo $EVENT | base64 -d | SUPERVISOR"
    else:
        # pkg/handlers/job.go: unquoted, so the shell splits, globs and, as dash, unescapes.
        event, command = expand(body.decode("utf-8", "replace"), environment), "echo $EVENT | SUPERVISOR"
        if service.mounts:
            # So the pod's status is that of the last `echo`, whatever became of the supervisor.
            command += ';echo "I finish" > finish-file;'
    environment |= {"EVENT": event, "JOB_UUID": job, "RESOURCE_ID": "sandbox-node"}
    return PodSpec(service.script, environment, command, tuple(minio_outputs(service)))


class Pods:
    """Runs at most `max_pods` at once, in order; ends all of them when left."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        buckets: Buckets,
        quotas: Quotas,
        on_end: Callable[[Job], None],
    ) -> None:
        """`on_end` is told of each job that ended by itself."""
        self._settings = settings
        self._ledger = ledger
        self._buckets = buckets
        self._quotas = quotas
        self._on_end = on_end
        self._places = Places(settings, ledger, quotas, self._simulated)
        self._bound = settings.max_pods or _REAL_PODS
        self._slots = asyncio.Semaphore(self._bound)
        self._waiting: asyncio.Queue[tuple[Job, PodSpec]] = asyncio.Queue()
        self._alive: set[Job] = set()
        """Waiting or running as processes, and not deleted."""
        self._processes: dict[Job, asyncio.subprocess.Process] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._directory = Path(tempfile.mkdtemp(prefix="sandbox-oscar-"))
        self._runs = 0

    async def __aenter__(self) -> Pods:
        if not self._settings.simulate:
            self._workers = [asyncio.create_task(self._work()) for _ in range(self._bound)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._places.close()
        for worker in self._workers:
            worker.cancel()
        outcomes = await asyncio.gather(*self._workers, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def start(self, job: Job, service: Service, body: bytes) -> None:
        """Queue the job's pod. Never waits."""
        if not self._settings.simulate:
            self._alive.add(job)
            if not job.hangs:
                self._waiting.put_nowait((job, pod_spec(service, job.name, body, self._settings)))
            return
        if len(body) > _SURELY_FITS or b"$(" in body:
            event = pod_spec(service, job.name, body, self._settings).environment["EVENT"]
            if len(event.encode()) + len("EVENT=\0") > _MAX_ENV_STRING:
                job.failed, job.start_error, job.log = True, True, _TOO_LONG
        passed_on = self._settings.supervisor == "go" and not service.mounts
        if job.evicted:
            job.failed = True
        elif job.script_status and not job.start_error:
            job.failed = passed_on
            if self._settings.supervisor == "go":
                job.log = (
                    f"{_now()} - supervisor - ERROR - Script exited with code {job.script_status}\n".encode()
                )
        elif not job.start_error:
            # The script leaves one file, of the job's name.
            outputs = (output for output in minio_outputs(service) if wanted(job.name, output))
            job.output_keys = tuple(f"{output['path']}/{job.name}" for output in outputs)
        self._places.add(job)

    def advance(self) -> None:
        """Bring the simulated pods up to now; those that run do so by themselves."""
        self._places.advance()

    def admit_all(self) -> None:
        """Let Kueue look again at all that it holds, as when a quota was changed."""
        self._places.admit_all()

    def _simulated(self, job: Job) -> None:
        for key in job.output_keys:
            self._buckets.put(key, 0, job.finished)
        self._end(job)

    def _end(self, job: Job) -> None:
        self._ledger.ended(job.service)
        self._on_end(job)

    def remove(self, job: Job) -> None:
        """End the pod of a deleted job."""
        self._places.remove(job)
        if job in self._alive:
            self._alive.discard(job)
            self._ledger.ended(job.service)
        if (process := self._processes.get(job)) is not None:
            _kill(process)

    def log(self, job: Job) -> bytes:
        """What the pod has written up to now."""
        if job.finished <= time.time():
            return job.log
        return _read(self._pod(job) / "log") or b""

    async def run(self, service: Service, body: bytes) -> tuple[int, bytes]:
        """One synchronous invocation: the supervisor's exit status and its output, or its errors.

        The body comes on standard input, so neither the shell nor a limit is in its way. TimeoutError
        after `run_timeout_seconds`.
        """
        if self._settings.simulate:
            async with asyncio.timeout(self._settings.run_timeout_seconds):
                await asyncio.sleep(self._settings.simulated_seconds)
            return 0, b""
        async with asyncio.timeout(self._settings.run_timeout_seconds), self._slots:
            self._runs += 1
            pod = self._directory / f"run-{self._runs}"
            _prepare(pod, service.script)
            process = await asyncio.create_subprocess_exec(
                *self._supervisor(pod),
                cwd=pod / "image", env=_environment(service.environment("variables")),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            try:
                output, errors = await process.communicate(body)
            finally:
                await _end(process)
                shutil.rmtree(pod, ignore_errors=True)
        return (process.returncode or 0), output if process.returncode == 0 else errors

    async def _work(self) -> None:
        while True:
            job, spec = await self._waiting.get()
            remaining = job.created + self._settings.pending_seconds - time.time()
            if remaining > 0:
                await asyncio.sleep(remaining)
            async with self._slots:
                if job in self._alive:
                    # What really runs is counted by Kueue, but never held.
                    self._quotas.take(job)
                    self._ledger.place_taken(time.time())
                    try:
                        await self._run(job, spec)
                    finally:
                        self._ledger.place_left(time.time())
                        self._quotas.give_back(job)
                    if job in self._alive:
                        self._alive.discard(job)
                        self._end(job)

    async def _run(self, job: Job, spec: PodSpec) -> None:
        pod = self._pod(job)
        _prepare(pod, f"exit {job.script_status}\n" if job.script_status else spec.script)
        program = shlex.join(self._supervisor(pod))
        job.placed = job.started = time.time()
        job.pod_from = min(job.pod_from, job.placed)
        try:
            with (pod / "log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    "/bin/sh", "-c", spec.command.replace("SUPERVISOR", program),
                    cwd=pod / "image", env=_environment(spec.environment),
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
        except (OSError, ValueError) as error:
            # E2BIG from the kernel, ValueError for a NUL: the container does not start, the pod fails.
            too_long = isinstance(error, OSError) and error.errno == errno.E2BIG
            job.log = _TOO_LONG if too_long else f"exec /bin/sh: {error}\n".encode()
            job.failed = job.start_error = True
        else:
            self._processes[job] = process
            if job not in self._alive:  # deleted while the process was being made
                _kill(process)
            try:
                job.failed = await process.wait() != 0
            finally:
                del self._processes[job]
                await _end(process)
            job.log = _read(pod / "log") or b""
            job.event_seen = _read(pod / "stdin", limit=None)
            job.input_seen = _read(pod / "input" / "event_file", limit=None)
            if (pod / "uploads").exists():
                self._upload(pod / "output", spec.outputs)
        job.finished = time.time()
        shutil.rmtree(pod, ignore_errors=True)
        _log.debug("job finished", job=job.name, service=job.service, status=job.phase)

    def _upload(self, folder: Path, outputs: tuple[dict[str, Any], ...]) -> None:
        """`upload_output` of faas-supervisor: every file that a filter does not keep back."""
        for file in (path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder).as_posix()
            for output in outputs:
                if wanted(name, output):
                    self._buckets.put(f"{output['path']}/{name}", file.stat().st_size)

    def _supervisor(self, pod: Path) -> list[str]:
        program = Path(__file__).with_name(_SUPERVISORS[self._settings.supervisor])
        return [sys.executable, "-I", "-S", str(program), str(pod)]

    def _pod(self, job: Job) -> Path:
        return self._directory / f"job-{job.sequence}"


def _prepare(pod: Path, script: str) -> None:
    for name in _IMAGE_FILES:
        (pod / "image" / name).mkdir(parents=True)
    (pod / "script.sh").write_text(script)


def _environment(variables: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), **variables}


def _now() -> str:
    """As both supervisors' loggers write it."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S,%f}"[:-3]


def _read(path: Path, limit: int | None = _MAX_LOG_BYTES) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(-1 if limit is None else limit)
    except FileNotFoundError:
        return None


def _kill(process: asyncio.subprocess.Process) -> None:
    """End the process with all it started: it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave nothing of a pod behind, also when its first process is done or we are cancelled."""
    _kill(process)
    await process.wait()
