"""A real ActiveMQ Classic with its STOMP connector, from the Debian package, on free loopback ports."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import stompman

from bridge.sandbox.servers import free_port
from tests.servers.debian import need
from tests.servers.process import Server

USERNAME = "bridge"
PASSWORD = "a password/with: odd% characters"
_HOME = Path("/usr/share/activemq")

_CONFIGURATION = """\
<beans xmlns="http://www.springframework.org/schema/beans"
  xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="http://www.springframework.org/schema/beans
    http://www.springframework.org/schema/beans/spring-beans-2.0.xsd
    http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" brokerName="localhost"
      dataDirectory="{home}/data" schedulerSupport="false" advisorySupport="false">
    <persistenceAdapter>
      <kahaDB directory="{home}/data/kahadb" journalMaxFileLength="4mb" enableJournalDiskSyncs="false"/>
    </persistenceAdapter>
    <plugins><simpleAuthenticationPlugin{anonymous}><users>
      <authenticationUser username="{username}" password="{password}" groups="users"/>
    </users></simpleAuthenticationPlugin></plugins>
    {tls}
    <systemUsage><systemUsage>
      <memoryUsage><memoryUsage limit="64 mb"/></memoryUsage>
      <storeUsage><storeUsage limit="256 mb"/></storeUsage>
      <tempUsage><tempUsage limit="64 mb"/></tempUsage>
    </systemUsage></systemUsage>
    <transportConnectors>{connectors}</transportConnectors>
  </broker>
</beans>
"""


class ActiveMQ(Server):
    """One broker. What is persistent in it outlives a restart of the same object.

    `tls` are PKCS#12 files with its key and with the authority of clients, both with the password `changeit`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        need("activemq")
        super().__init__()
        self.host = host
        self.stomp_port = port or free_port()
        self.stomp_tls_port = free_port()
        self._ports = [self.stomp_port] + ([] if tls is None else [self.stomp_tls_port])
        connectors = [f'<transportConnector name="stomp" uri="stomp://{host}:{self.stomp_port}"/>']
        context = ""
        if tls is not None:
            key, trusted = tls
            connectors.append(
                '<transportConnector name="stomp+ssl" '
                f'uri="stomp+ssl://{host}:{self.stomp_tls_port}?needClientAuth=true"/>'
            )
            context = (
                f'<sslContext><sslContext keyStore="file:{key}" keyStorePassword="changeit" '
                f'keyStoreType="PKCS12" trustStore="file:{trusted}" trustStorePassword="changeit" '
                'trustStoreType="PKCS12"/></sslContext>'
            )
        (self.home / "activemq.xml").write_text(
            _CONFIGURATION.format(
                home=self.home,
                username=USERNAME,
                password=PASSWORD,
                anonymous="" if tls is None else ' anonymousAccessAllowed="true"',
                tls=context,
                connectors="".join(connectors),
            )
        )

    def start(self) -> None:
        jars = sorted([*(_HOME / "lib").glob("*.jar"), *(_HOME / "lib" / "optional").glob("*.jar")])
        jars = [jar for jar in jars if "slf4j-log4j" not in jar.name]
        jars += [Path("/usr/share/java") / name for name in ("slf4j-simple.jar", "commons-logging.jar")]
        self.run(
            [
                "java",
                "-Xms64m",
                "-Xmx192m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                f"-Dactivemq.home={_HOME}",
                f"-Dactivemq.base={self.home}",
                f"-Dactivemq.data={self.home / 'data'}",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "-cp",
                ":".join(map(str, jars)),
                "org.apache.activemq.console.Main",
                "start",
                f"xbean:file:{self.home / 'activemq.xml'}",
            ],
            self._ports,
            os.environ,
        )

    async def browse(self, destination: str) -> list[bytes]:
        """Give the bodies of what is in a queue, also of what is in somebody's hands; nothing is taken."""
        reader, writer = await asyncio.open_connection(self.host, self.stomp_port)
        try:
            connect = stompman.ConnectFrame(
                headers={
                    "accept-version": "1.2",
                    "host": "/",
                    "login": USERNAME,
                    "passcode": PASSWORD,
                }
            )
            subscribe = stompman.SubscribeFrame(
                headers={  # type: ignore[typeddict-unknown-key] # likewise
                    "id": "1",
                    "destination": destination,
                    "ack": "auto",
                    "browser": "true",
                }
            )
            writer.write(stompman.dump_frame(connect) + stompman.dump_frame(subscribe))
            parser = stompman.FrameParser()
            found: list[bytes] = []
            async with asyncio.timeout(60):
                while True:
                    data = await reader.read(65536)
                    assert data, "the broker hung up"
                    for frame in parser.parse_frames_from_chunk(data):
                        assert not isinstance(frame, stompman.ErrorFrame), frame
                        if isinstance(frame, stompman.MessageFrame):
                            if dict(frame.headers).get("browser") == "end":
                                return found
                            found.append(frame.body)
        finally:
            writer.transport.abort()
