"""The status page in a real browser, as its server sends it, before a bridge with much to tell."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from playwright.async_api import Browser, Route, expect

from tests.page.fake import HOSTILE
from tests.page.visiting import TOKEN, Site, Visitor

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_it_asks_for_the_token_and_keeps_it_for_the_tab_alone(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    page = visitor.page
    await page.goto(site.url)
    await expect(page.locator("#main")).to_be_hidden()
    assert "leaf" not in await page.content()
    await page.get_by_label("Token").fill("the-wrong-one")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("does not take this token")).to_be_visible()
    assert await page.evaluate("sessionStorage.length") == 0
    await page.get_by_label("Token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_visible()
    await page.reload()
    await expect(page.locator("#main")).to_be_visible()
    kept = await page.evaluate("[document.cookie, localStorage.length, sessionStorage.token]")
    assert kept == ["", 0, TOKEN]
    await page.get_by_text("Forget the token").click()
    await expect(page.locator("#door")).to_be_visible()
    assert await page.evaluate("sessionStorage.length") == 0
    assert "leaf" not in await page.content()
    refused = "error: Failed to load resource: the server responded with a status of 401 (Unauthorized)"
    assert visitor.complaints == [refused]


async def test_it_says_what_is_wrong_where_since_when_and_what_to_do(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    await visitor.opens(site.url)
    cards = visitor.page.locator("#problems-list li")
    await expect(visitor.page.locator("#summary")).to_contain_text("2 things are wrong")
    await expect(visitor.page).to_have_title("(2) OSCAR Event Bridge")
    first = cards.first
    await expect(first).to_contain_text("service floods 5 events were refused: 401 Unauthorized")
    await expect(first).to_contain_text("Nothing accepted since about")
    await expect(first).to_contain_text("1,240 events parked, the oldest for 24 min")
    await expect(first).to_contain_text("mend the service or its credentials")
    await expect(cards.nth(1)).to_contain_text("source arrivals no connection")
    await expect(cards.nth(1)).to_contain_text("Nothing received since about")
    await expect(cards.nth(2)).to_contain_text("cluster flood-lab no access token could be had")
    await expect(cards.nth(3)).to_contain_text("7 dead letters plants 3 · floods 2")
    site.bridge.calm = True
    site.bridge.letters = []
    await visitor.looks_again()
    await expect(visitor.page.locator("#summary")).to_contain_text("All is well")
    await expect(visitor.page.get_by_role("status")).to_contain_text("Over: service floods")
    visitor.assert_at_ease(site.url)


@pytest.mark.prove
async def test_the_flow_leads_from_sources_by_routes_and_services_to_clusters(
    site: Site, browser: Browser
) -> None:
    visitor = await Visitor.of(browser)
    await visitor.opens(site.url)
    flow = visitor.page.locator("#picture")
    for part in ("source uploads", "route 0", "service plants", "cluster main"):
        await expect(flow.locator(f'[data-node="{part}"]')).to_be_visible()
    floods = flow.locator('[data-node="service floods"]')
    for text in ("shut", "401 Unauthorized", "1,000 of 1,000 queued", "1,240 parked", "0/s accepted"):
        await expect(floods).to_contain_text(text)
    await expect(flow.locator('[data-node="cluster main"]')).to_contain_text("8 at once, as found")
    await expect(flow.locator("path.stuck")).to_have_count(3)
    await expect(flow.locator("path.moving")).to_have_count(9)
    visitor.assert_at_ease(site.url)


async def test_what_strangers_wrote_stays_text(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    page = visitor.page
    await visitor.opens(site.url)
    for text in HOSTILE:
        await expect(page.locator("#dead-list")).to_contain_text(text)
    await page.get_by_label("File, key, event id or job").fill("leaf-1.nc")
    await page.keyboard.press("Enter")
    for text in HOSTILE:
        await expect(page.locator("#found")).to_contain_text(text)
    await page.get_by_label("Look at 1").first.click()
    await expect(page.get_by_label("Data")).to_contain_text(HOSTILE[1])
    assert await page.locator("img, main script, dialog script").count() == 0
    assert await page.evaluate("window.hacked") is None
    visitor.assert_at_ease(site.url)


@pytest.mark.prove
async def test_dead_letters_are_replayed_and_discarded_if_a_person_means_it(
    site: Site, browser: Browser
) -> None:
    visitor = await Visitor.of(browser)
    page, commands = visitor.page, site.bridge.commands
    await visitor.opens(site.url)
    rows = page.locator("#dead-list tbody tr")
    await page.get_by_label("Replay 7").click()
    await expect(rows).to_have_count(6)
    await expect(page.get_by_role("status")).to_contain_text("1 event given back to the lanes")
    assert commands == [{"do": "replay", "as_new": False, "numbers": [7]}]
    await page.get_by_label("Choose 6").check()
    await page.get_by_label("Choose 5").check()
    await page.get_by_role("button", name="Discard").click()
    await expect(page.get_by_role("dialog")).to_contain_text("Discard 2 dead letters?")
    await page.keyboard.press("Enter")  # nothing is chosen yet
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")  # the first is not to
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(rows).to_have_count(6)
    await page.get_by_role("button", name="Discard").click()
    await page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    await expect(rows).to_have_count(4)
    assert commands[1:] == [{"do": "discard", "numbers": [6, 5]}]
    await page.locator("#dead-filter").get_by_label("Service").select_option("floods")
    await page.locator("#dead-filter").get_by_role("button").click()
    await expect(rows).to_have_count(1)
    await page.locator("#dead-list").get_by_role("button", name="Replay as new jobs").click()
    await expect(page.get_by_text("There are none of this kind.")).to_be_visible()
    (last,) = commands[2:]
    assert 0 < time.time() - last["kept_before"] < 30, "what came since the list was read is not meant"
    assert {**last, "kept_before": 0} == {
        "do": "replay",
        "as_new": True,
        "service": "floods",
        "cause": None,
        "kept_before": 0,
    }
    visitor.assert_at_ease(site.url)


async def test_what_comes_while_a_person_is_asked_is_not_discarded(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    page, bridge = visitor.page, site.bridge
    await visitor.opens(site.url)
    await page.get_by_label("Look at 5").wait_for()
    await page.get_by_role("button", name="Discard").click()
    await expect(page.get_by_role("dialog")).to_contain_text("Discard 7 dead letters?")
    parked_before = {**bridge.letters[0], "number": 0, "kept_at": time.time()}  # it keeps its number
    bridge.letters.append(parked_before)
    await visitor.looks_again()
    await expect(page.locator("#problems-list")).to_contain_text("8 dead letters")
    await page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    await expect(page.get_by_role("status")).to_contain_text("7 events discarded")
    assert bridge.letters == [parked_before]
    await expect(page.locator("#dead-list tbody tr")).to_have_count(1)
    visitor.assert_at_ease(site.url)


async def test_what_is_still_upstream_is_not_called_unknown(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    page, found = visitor.page, visitor.page.locator("#found")
    await visitor.opens(site.url)
    for query, told in (("waits.nc", "Still upstream: uploads: not read yet"), ("gone.nc", "Never seen")):
        await page.get_by_label("File, key, event id or job").fill(query)
        await page.keyboard.press("Enter")
        await expect(found).to_contain_text(told)
    await expect(found).not_to_contain_text("upstream")
    visitor.assert_at_ease(site.url)


@pytest.mark.prove
async def test_what_is_parked_for_a_service_that_is_gone_can_be_made_a_dead_letter(
    site: Site, browser: Browser
) -> None:
    visitor = await Visitor.of(browser)
    page, letter = visitor.page, visitor.page.locator("#letter")
    await visitor.opens(site.url)
    await page.get_by_label("Look at 90001").click()
    await expect(letter).to_contain_text("scans/2026/tile 1.tiff")
    await expect(letter.get_by_role("button")).to_have_count(1)
    await letter.get_by_role("button", name="Close").click()
    await page.get_by_label("Look at 90000").click()
    await letter.get_by_role("button", name="Make it a dead letter").click()
    await expect(page.get_by_role("status")).to_contain_text("1 event made a dead letter")
    assert site.bridge.commands == [{"do": "bury", "numbers": [90_000]}]
    visitor.assert_at_ease(site.url)


@pytest.mark.prove
async def test_limits_are_changed_and_parts_paused_for_a_time(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    page, commands = visitor.page, site.bridge.commands
    await visitor.opens(site.url)
    await page.locator('[data-node="service plants"]').click()
    part = page.locator("#part")
    await part.get_by_label("concurrency").fill("4")
    await part.get_by_label("How long").first.select_option("for 1 h")
    await part.get_by_role("button", name="Set limits").click()
    await expect(part).to_contain_text("configured: 16")
    limits = {"do": "limits", "kind": "service", "key": "plants", "limits": {"concurrency": "4"}}
    assert commands == [{**limits, "seconds": 3600}]
    await part.get_by_label("rate").fill("fast")
    await part.get_by_role("button", name="Set limits").click()
    await expect(page.get_by_role("status")).to_contain_text("Not done: rate: expected a rate such as 10/s")
    await expect(part.get_by_label("rate")).to_have_value("fast")
    await part.get_by_role("button", name="Pause").click()
    await expect(part.get_by_role("button", name="Resume")).to_be_visible()
    assert commands[2:] == [{"do": "pause", "kind": "service", "key": "plants", "seconds": None}]
    await part.get_by_role("button", name="Close").click()
    await expect(page.locator("#problems-list")).to_contain_text(
        "service plants is paused by a person's order"
    )
    await page.locator("#problems-list").get_by_role("button", name="Resume").click()
    await expect(page.locator("#problems-list")).not_to_contain_text("is paused")
    assert commands[3:] == [{"do": "resume", "kind": "service", "key": "plants"}]
    refused = "error: Failed to load resource: the server responded with a status of 400 (Bad Request)"
    assert visitor.complaints == [refused]


@pytest.mark.prove
async def test_a_keyboard_is_enough(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    page, press = visitor.page, visitor.page.keyboard.press

    async def tab_to(wanted: str, key: str = "Tab") -> None:
        for _ in range(60):
            await press(key)
            told = await page.evaluate(
                "[document.activeElement.ariaLabel ?? document.activeElement.textContent, "
                "getComputedStyle(document.activeElement).outlineStyle]"
            )
            assert told[1] != "none", f"{told[0]!r} does not show that it has the focus"
            if told[0].startswith(wanted):
                return
        raise AssertionError(f"no way leads to {wanted!r}")

    await page.goto(site.url)
    await page.locator("#door").wait_for()
    await page.keyboard.type(TOKEN)
    await press("Enter")
    await page.locator("#main").wait_for()
    await tab_to("Show floods")
    await page.reload()
    await page.locator("#main").wait_for()
    await tab_to("Skip to what is wrong")
    await press("Enter")
    await tab_to("Show floods")
    await press("Enter")
    await expect(page.locator("#part")).to_contain_text("service floods")
    await press("Escape")
    await expect(page.locator("#part")).to_be_hidden()
    assert await page.evaluate("document.activeElement.textContent") == "Show floods"
    await tab_to("All dead letters")
    await press("Enter")
    await tab_to("Choose 7")
    await press("Space")
    await tab_to("Discard", "Shift+Tab")
    await press("Enter")
    await expect(page.get_by_role("dialog")).to_contain_text("Discard 1 dead letter?")
    await tab_to("Discard")
    await press("Enter")
    await expect(page.locator("#dead-list tbody tr")).to_have_count(6)
    visitor.assert_at_ease(site.url)


@pytest.mark.prove
async def test_it_stays_calm_while_numbers_change(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser, width=900, height=500)
    page = visitor.page
    await visitor.opens(site.url)
    await page.get_by_label("Look at 5").wait_for()
    await page.locator("#dead-filter").get_by_label("Text").fill("half a wo")
    await page.evaluate(
        "getSelection().selectAllChildren(document.querySelector('[data-node=\"cluster main\"] .name'));"
        "scrollTo(0, 700)"
    )
    remembered = (
        "[document.activeElement.name, document.activeElement.value, String(getSelection()), scrollY]"
    )
    before = await page.evaluate(remembered)
    assert before == ["text", "half a wo", "main", 700]
    site.bridge.queued = 321
    await visitor.looks_again()
    await expect(page.locator('[data-node="service plants"]')).to_contain_text("321 of 1,000 queued")
    assert await page.evaluate(remembered) == before
    visitor.assert_at_ease(site.url)


@pytest.mark.prove
async def test_it_says_when_the_bridge_does_not_answer_and_how_old_is_what_it_shows(
    site: Site, browser: Browser
) -> None:
    visitor = await Visitor.of(browser)
    page = visitor.page
    await visitor.opens(site.url)
    alert = page.locator("#banner")
    await expect(alert).to_be_hidden()
    await site.down()
    await visitor.looks_again()
    await expect(alert).to_contain_text(
        "The bridge can't be seen: no connection to it. What is shown here is of"
    )
    await expect(page.locator("#summary")).to_contain_text("No answer")
    await expect(page.locator("#dead-list")).to_be_visible()
    await site.up()
    await expect(alert).to_be_hidden()
    await expect(page.locator("#summary")).to_contain_text("2 things are wrong")
    status, site.bridge.status = site.bridge.status, lambda _asked: {}
    await visitor.looks_again()
    await expect(alert).to_contain_text("this page has a defect (TypeError")
    site.bridge.status = status
    await visitor.looks_again()
    await expect(alert).to_be_hidden()


@pytest.mark.prove
async def test_an_answer_that_comes_late_shows_nothing_of_what_is_over(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    page = visitor.page
    await visitor.opens(site.url)
    await page.get_by_label("Look at 5").wait_for()
    site.bridge.held = asyncio.Event()
    async with page.expect_request("**/api/status"):
        await visitor.looks_again()
    await page.get_by_text("Forget the token").click()
    await expect(page.locator("#door")).to_be_visible()
    site.bridge.held.set()
    await site.bridge.answered.wait()
    await expect(page.locator("#main")).to_be_hidden()
    assert await page.evaluate("sessionStorage.length") == 0
    assert "leaf" not in await page.content()


@pytest.mark.prove
async def test_the_hours_shown_are_those_that_were_chosen_last(site: Site, browser: Browser) -> None:
    visitor = await Visitor.of(browser)
    page, late = visitor.page, asyncio.Event()
    nothing = {**site.bridge.history({"hours": 1}), "sources": {}, "services": {}}

    async def hold(route: Route) -> None:
        await late.wait()
        await route.fulfill(json=nothing)

    await page.route("**/api/history?hours=1", hold)
    await visitor.opens(site.url)
    plot = page.locator("#plots svg").first
    await expect(plot).to_have_attribute("aria-label", re.compile("accepted [1-9]"))
    async with page.expect_request("**/api/history?hours=1"):
        await page.locator("#hours-time").select_option("1")
    async with page.expect_response("**/api/history?hours=24"):
        await page.locator("#hours-time").select_option("24")
    async with page.expect_response("**/api/history?hours=1"):
        late.set()
    site.bridge.queued = 321
    await visitor.looks_again()
    await expect(page.locator('[data-node="service plants"]')).to_contain_text("321 of 1,000 queued")
    await expect(plot).to_have_attribute("aria-label", re.compile("accepted [1-9]"))
    visitor.assert_at_ease(site.url)


@pytest.mark.prove
@pytest.mark.parametrize("site", [{"services": 50, "dead_letters": 10_000}], indirect=True)
async def test_a_narrow_window_has_room_for_50_services_and_10_000_dead_letters(
    site: Site, browser: Browser
) -> None:
    visitor = await Visitor.of(browser, width=360, height=740)
    page = visitor.page
    await visitor.opens(site.url)
    pages = page.locator("#dead-list")
    await expect(pages).to_contain_text("Page 1: 25 of 10,000")
    await expect(page.locator('[data-node^="service "]')).to_have_count(50)
    await pages.get_by_role("button", name="Next page").click()
    await expect(pages).to_contain_text("Page 2: 25 of 10,000")
    await pages.get_by_role("button", name="Page before").click()
    await expect(pages).to_contain_text("Page 1: 25 of 10,000")
    await page.get_by_label("File, key, event id or job").fill("leaf-" + "long" * 40)
    await page.keyboard.press("Enter")
    await expect(page.locator("#found article")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    visitor.assert_at_ease(site.url)
