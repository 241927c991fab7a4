"""The status page of a whole bridge, between Kafka and OSCAR, as a person uses it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import expect

from bridge.testing import until
from tests.destinations.fake_oscar import PASSWORD, USER, FakeOscar
from tests.page.fake import HOSTILE
from tests.page.visiting import Visitor, write_token
from tests.promises.test_http_api import storage_event
from tests.servers.chromium import chromium
from tests.support.world import World

SCRIPT, IMAGE = HOSTILE


async def hostile(_request: web.Request, _body: bytes) -> web.StreamResponse:
    return web.Response(status=422, text=f"{SCRIPT} {IMAGE}")


@pytest.mark.prove
async def test_a_person_brings_a_dead_letter_back_finds_a_file_and_changes_a_limit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE__HTTP__TOKEN_FILE", str(write_token(tmp_path)))
    cluster = {"auth": {"type": "basic", "username": USER, "password": PASSWORD}}
    strange = FakeOscar(services={"strange"}, answer=hostile)
    async with strange.serve(), chromium() as browser:
        configuration = world.configuration()
        configuration["clusters"]["strange"] = {"endpoint": strange.url, **cluster}
        configuration["services"]["plants"]["cluster"] = "main"
        configuration["services"]["strange"] = {"cluster": "strange"}
        configuration["sources"]["uploads"] = world.source(open="auto")
        configuration["routes"] = [
            {"from": "uploads", "when": "has(data.n)", "to": "plants"},
            {"from": "uploads", "when": "!has(data.n)", "to": "strange"},
        ]
        daemon = world.daemon(configuration)
        url = f"http://127.0.0.1:{daemon.port}/"
        world.oscar.settings.max_body_bytes = 60
        await world.produce_numbers(1, filling="x" * 100)
        await world.bed.produce([storage_event(IMAGE), b"{}"], keys=[SCRIPT.encode(), SCRIPT.encode()])
        daemon.start()
        await until(lambda: len(daemon.said("dead letter")) == 3, what="the dead letters")
        world.oscar.settings.max_body_bytes = None

        visitor = await Visitor.of(browser)
        page = visitor.page
        await visitor.opens(url)
        rows = page.locator("#dead-list tbody tr")
        await expect(rows).to_have_count(3)
        for text in HOSTILE:
            await expect(rows.filter(has_text=text).first).to_be_visible()
        await rows.filter(has_text="http_413").get_by_role("button", name="Replay").click()
        await expect(rows).to_have_count(2)
        await world.all_jobs()
        world.assert_one_job_an_event()

        found = page.locator("#found article")

        async def find(name: str, *told: str) -> None:
            await page.get_by_label("File, key, event id or job").fill(name)
            shown = ""
            async with asyncio.timeout(60):
                while not all(text in shown for text in told):  # lines come in batches, a job ends in time
                    async with page.expect_response("**/api/events?*"):
                        await page.keyboard.press("Enter")
                    shown = " ".join(await found.all_inner_texts())

        await find(world.job_of(0), world.ids[0], "http_413", "replayed", "accepted", "succeeded")
        await find(SCRIPT, SCRIPT, "dead letter")

        await page.locator('[data-node="service plants"]').click()
        await page.get_by_label("concurrency").fill("3")
        await page.get_by_role("button", name="Set limits").click()
        await expect(page.locator("#part")).to_contain_text("configured: 16")
        assert await daemon.metric("bridge_lane_limit", service="plants") == 3
        await page.locator("#part").get_by_role("button", name="Pause").click()
        await expect(page.locator("#part").get_by_role("button", name="Resume")).to_be_visible()
        assert await daemon.metric("bridge_lane_paused", service="plants") == 1
        await page.keyboard.press("Escape")

        for number in range(2):
            await rows.nth(number).get_by_role("button", name="Look").click()
            await expect(page.locator("#letter")).to_be_visible()  # it opens when its answer is there
            await expect(page.locator("#letter")).to_contain_text(SCRIPT)
            await page.keyboard.press("Escape")
            await expect(page.locator("#letter")).to_be_hidden()
        assert await page.locator("img, main script, dialog script").count() == 0
        assert await page.evaluate("window.hacked") is None
        await page.locator("#dead-list").get_by_role("button", name="Discard").click()
        await page.get_by_role("dialog").get_by_role("button", name="Discard").click()
        await expect(page.locator("#dead-list")).to_contain_text("There are none.")
        visitor.assert_at_ease(url)
        assert await daemon.stop() == 0
