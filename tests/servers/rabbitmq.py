"""A real RabbitMQ with its STOMP plugin, from the Debian package, on free loopback ports."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import aiormq
from aiormq.abc import AbstractChannel

from bridge.sandbox.kafka import free_port
from tests.servers.debian import need
from tests.servers.tansu import listens

USERNAME = "bridge"
PASSWORD = "a password/with: odd% characters"
VIRTUAL_HOST = "rucio"
_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_START_SECONDS = 60.0


def _hashed(password: str) -> str:
    """As RabbitMQ keeps it (its documentation, "Credentials and Passwords")."""
    salt = b"salt"
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class RabbitMQ:
    """One node. What is durable in it outlives a restart of the same object.

    `tls` are the files of authority, certificate and key, for listeners of AMQP and STOMP that want a client
    certificate whose common name is the user.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        consumer_timeout_ms: int | None = None,
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        need("rabbitmq-server")
        self.host = host
        self.port = port or free_port()
        self.stomp_port = free_port()
        self.tls_port = free_port()
        self.stomp_tls_port = free_port()
        self._home = tempfile.TemporaryDirectory(prefix="rabbitmq-")
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._name = f"t{uuid4().hex[:8]}@localhost"
        home = Path(self._home.name)
        lines = [
            f"listeners.tcp.default = {host}:{self.port}",
            f"stomp.listeners.tcp.1 = {host}:{self.stomp_port}",
            "loopback_users = none",
            "log.file.level = warning",
            f"load_definitions = {home / 'definitions.json'}",
            "vm_memory_high_watermark.absolute = 512MB",
            "disk_free_limit.absolute = 1MB",
        ]
        if consumer_timeout_ms is not None:
            lines.append(f"consumer_timeout = {consumer_timeout_ms}")
            # It looks once a tick, by default a minute.
            (home / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 1000}]}].\n")
        if tls is not None:
            authority, certificate, key = tls
            lines += [
                f"listeners.ssl.default = {host}:{self.tls_port}",
                f"stomp.listeners.ssl.1 = {host}:{self.stomp_tls_port}",
                "stomp.ssl_cert_login = true",
                f"ssl_options.cacertfile = {authority}",
                f"ssl_options.certfile = {certificate}",
                f"ssl_options.keyfile = {key}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = true",
                "ssl_cert_login_from = common_name",
                "auth_mechanisms.1 = PLAIN",
                "auth_mechanisms.2 = EXTERNAL",
            ]
        self._tls = tls is not None
        (home / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (home / "plugins").write_text("[rabbitmq_stomp,rabbitmq_auth_mechanism_ssl].\n")
        all_of_it = {"configure": ".*", "write": ".*", "read": ".*"}
        definitions = {
            "users": [
                {
                    "name": USERNAME,
                    "password_hash": _hashed(PASSWORD),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": "",
                    "limits": {},
                }
            ],
            "vhosts": [{"name": VIRTUAL_HOST}, {"name": "/"}],
            "permissions": [{"user": USERNAME, "vhost": name, **all_of_it} for name in (VIRTUAL_HOST, "/")],
        }
        (home / "definitions.json").write_text(json.dumps(definitions))

    def start(self) -> None:
        """Start the node and return once it listens. Raises RuntimeError when it does not."""
        home = Path(self._home.name)
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(home),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "RUNNING_UNDER_SYSTEMD": "yes",  # the script then becomes the node
        }
        if self._epmd is None:  # one of our own: Erlang would leave one running
            self._epmd = subprocess.Popen(
                ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            _until(lambda: listens(self._epmd_port), self._epmd, "epmd")
        with (home / "out").open("ab") as out:
            self._process = subprocess.Popen([_SERVER], env=environment, cwd=home, stdout=out, stderr=out)
        ports = [self.port, self.stomp_port] + ([self.tls_port, self.stomp_tls_port] if self._tls else [])
        try:
            _until(lambda: all(listens(port, self.host) for port in ports), self._process, "RabbitMQ")
        except RuntimeError as error:
            self.stop()
            raise RuntimeError(f"{error}: {(home / 'out').read_text()[-2000:]}") from None

    def stop(self, *, kill: bool = True) -> None:
        """End the node: by SIGKILL, or in order."""
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(30)
            self._process = None

    def __enter__(self) -> RabbitMQ:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
        self._home.cleanup()

    async def channel(self) -> AbstractChannel:
        """Give a channel of somebody else than the bridge; `await channel.connection.close()` ends it."""
        from yarl import URL

        connection = aiormq.Connection(
            URL.build(
                scheme="amqp",
                user=USERNAME,
                password=PASSWORD,
                host=self.host,
                port=self.port,
                path=f"/{VIRTUAL_HOST}",
            )
        )
        await connection.connect()
        return await connection.channel()

    async def declare(self, queue: str, **arguments: Any) -> None:
        """Make a durable queue; `arguments` with `_` for `-`, such as `x_queue_type`."""
        channel = await self.channel()
        try:
            await channel.queue_declare(
                queue,
                durable=True,
                arguments={name.replace("_", "-"): value for name, value in arguments.items()},
            )
        finally:
            await channel.connection.close()

    async def delete(self, queue: str) -> None:
        channel = await self.channel()
        try:
            await channel.queue_delete(queue)
        finally:
            await channel.connection.close()

    async def ready(self, queue: str) -> int:
        """Count the messages that wait; those in somebody's hands are not among them."""
        channel = await self.channel()
        try:
            told = await channel.queue_declare(queue, passive=True)
            return told.message_count or 0
        finally:
            await channel.connection.close()


def _until(condition: Any, process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"{what} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not listen in {_START_SECONDS:g} s")
        time.sleep(0.05)
