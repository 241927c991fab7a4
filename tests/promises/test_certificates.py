"""Our own certificate has expired."""

from __future__ import annotations

import asyncio

from tests.servers.certificates import Certificates
from tests.support.world import World


async def test_a_certificate_that_expired_is_told_with_its_file_and_date(
    world: World, certificates: Certificates
) -> None:
    ours = world.directory / "ours.pem"
    ours.write_bytes(certificates.expired.read_bytes() + certificates.expired_key.read_bytes())
    source = {
        "type": "kafka",
        "bootstrap_servers": "127.0.0.1:9",
        "topics": ["t"],
        "group_id": "g",
        "security_protocol": "SSL",
        "tls": {"ca_file": str(certificates.authority), "cert_file": str(ours)},
    }
    daemon = world.daemon(world.configuration(sources={"uploads": source}))
    daemon.start()
    await daemon.is_up()
    expired = {"part": "source uploads", "reason": f"our certificate {ours} expired on "}
    async with asyncio.timeout(30):
        while not any(
            one["part"] == expired["part"] and one["reason"].startswith(expired["reason"])
            for one in ((await daemon.ready()) or {"problems": []})["problems"]
        ):
            await asyncio.sleep(0.05)
    assert await daemon.metric("bridge_certificate_expiry_seconds", source="uploads") < 0
    await daemon.says("certificate", part="source uploads")
    shown = daemon.command("check")
    assert shown.returncode == 1
    assert f"our certificate {ours} expired on" in shown.stdout
    assert "ca_file" not in shown.stdout
    assert await daemon.stop() == 0
