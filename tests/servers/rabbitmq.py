"""A real RabbitMQ with its STOMP plugin, from the Debian package, on free loopback ports."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import aiormq
from aiormq.abc import AbstractChannel, ChannelFrame

from bridge.sandbox.servers import free_port
from tests.servers.debian import need
from tests.servers.process import Server

USERNAME = "bridge"
PASSWORD = "a password/with: odd% characters"
VIRTUAL_HOST = "rucio"
_BIN = Path("/usr/lib/rabbitmq/bin")


def _hashed(password: str) -> str:
    """As RabbitMQ keeps it (its documentation, "Credentials and Passwords")."""
    salt = b"salt"
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


@dataclass(frozen=True, slots=True)
class Foreign:
    """A message as bytes: its properties with their flags, and the names it is sent by."""

    body: bytes = b"{}"
    properties: bytes = b"\x00\x00"
    exchange: bytes = b""
    routing_key: bytes | None = None
    """The queue's name, unless it is given."""

    def frames(self, queue: str, channel: int) -> bytes:
        key = queue.encode() if self.routing_key is None else self.routing_key
        names = b"".join(bytes([len(name)]) + name for name in (self.exchange, key))
        parts = [
            (1, struct.pack(">HHH", 60, 40, 0) + names + b"\x00"),
            (2, struct.pack(">HHQ", 60, 0, len(self.body)) + self.properties),
        ]
        parts += [(3, self.body[at : at + 100_000]) for at in range(0, len(self.body), 100_000)]
        return b"".join(
            struct.pack(">BHI", kind, channel, len(part)) + part + b"\xce" for kind, part in parts
        )


class _Epmd(Server):
    """Tells where a node is: Erlang would leave one of its own running."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()

    def start(self) -> None:
        self.run(
            ["epmd", "-port", str(self.port), "-address", self.host],
            [self.port],
            {"PATH": os.environ["PATH"]},
        )


class RabbitMQ(Server):
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
        super().__init__()
        self.host = host
        self.port = port or free_port()
        self.stomp_port = free_port()
        self.tls_port = free_port()
        self.stomp_tls_port = free_port()
        self._ports = [self.port, self.stomp_port]
        self._epmd = _Epmd()
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "ERL_EPMD_PORT": str(self._epmd.port),
            "ERL_EPMD_ADDRESS": self._epmd.host,
            "RABBITMQ_NODENAME": f"t{uuid4().hex[:8]}@localhost",
        }
        lines = [
            f"listeners.tcp.default = {host}:{self.port}",
            f"stomp.listeners.tcp.1 = {host}:{self.stomp_port}",
            "loopback_users = none",
            "log.file.level = warning",
            f"load_definitions = {self.home / 'definitions.json'}",
            "vm_memory_high_watermark.absolute = 512MB",
            "disk_free_limit.absolute = 1MB",
        ]
        if consumer_timeout_ms is not None:
            lines.append(f"consumer_timeout = {consumer_timeout_ms}")
            # It looks once a tick, by default a minute.
            (self.home / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 1000}]}].\n")
        if tls is not None:
            authority, certificate, key = tls
            self._ports += [self.tls_port, self.stomp_tls_port]
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
        (self.home / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.home / "plugins").write_text("[rabbitmq_stomp,rabbitmq_auth_mechanism_ssl].\n")
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
        (self.home / "definitions.json").write_text(json.dumps(definitions))

    def start(self) -> None:
        self.run(
            [_BIN / "rabbitmq-server"],
            self._ports,
            {
                **self._environment,
                "RABBITMQ_DIST_PORT": str(free_port()),
                "RABBITMQ_MNESIA_BASE": str(self.home / "mnesia"),
                "RABBITMQ_LOG_BASE": str(self.home / "log"),
                "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq"),
                "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "advanced.config"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "plugins"),
                "RABBITMQ_PID_FILE": str(self.home / "pid"),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                    "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none "
                    "-kernel inet_dist_use_interface {127,0,0,1}"
                ),
                "RUNNING_UNDER_SYSTEMD": "yes",  # the script then becomes the node
            },
        )

    def __enter__(self) -> Self:
        self._epmd.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._epmd.__exit__(kind, error, trace)

    async def control(self, *command: str) -> None:
        """Run `rabbitmqctl`; it takes a second or two."""
        process = await asyncio.create_subprocess_exec(
            _BIN / "rabbitmqctl",
            *command,
            env=self._environment,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        told, _ = await process.communicate()
        assert process.returncode == 0, told.decode()

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

    async def publish(self, queue: str, *messages: Foreign) -> None:
        """Send what a client of AMQP may send and a decent one does not; return once the broker has it."""
        channel = await self.channel()
        try:
            for message in messages:
                channel.delivery_tag += 1
                confirmed = asyncio.get_running_loop().create_future()
                channel.confirmations[channel.delivery_tag] = confirmed
                frames = message.frames(queue, channel.number)
                await channel.write_queue.put(ChannelFrame(frames, should_close=False))
                await confirmed
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
