"""The example page in a real browser: it streams, is cut, is loaded again, and misses nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.fleet import KEY, Fleet
from tests.support.say import CHAT, chat, record, when

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

LIMIT_MS = 20_000


@pytest.fixture
def page(fleet: Fleet, site: str) -> Iterator[Page]:
    """The page, opened, with the fleet's address and key filled in. Nothing may fail in its console."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 900, "height": 900})
        tab.set_default_timeout(LIMIT_MS)
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(f"{site}/resume.html")
        tab.fill("#bases", f"{fleet.url(0)} {fleet.url(1)}/v1/")
        tab.fill("#key", KEY)
        yield tab
        browser.close()
    assert wrong == []


def ask(page: Page, **script: Any) -> None:
    """Sends a script as the prompt."""
    page.fill("#model", "echo")
    page.fill("#prompt", "echo: " + orjson.dumps(script).decode())
    page.click("#send")


def facts(page: Page) -> dict[str, Any]:
    """What the page remembers."""
    return orjson.loads(page.evaluate("sessionStorage.getItem('headrace-example')"))


def test_a_stream_that_is_cut_and_a_page_that_is_loaded_again_miss_nothing(page: Page, client: httpx.Client) -> None:
    ask(page, numbered=True, tokens=120, token_ms=25)
    expect(page.locator("#answer")).to_contain_text(" 10 ", timeout=LIMIT_MS)
    page.click("#cut")
    expect(page.locator("#connections")).to_have_text("2", timeout=LIMIT_MS)
    expect(page.locator("#answer")).to_contain_text(" 60 ", timeout=LIMIT_MS)
    page.reload()
    expect(page.locator("#state")).to_have_text("complete", timeout=LIMIT_MS)
    told = facts(page)
    assert told["text"] == "".join(f" {number}" for number in range(120))
    # The tokens, the finish reason, the end: each came once.
    assert (told["events"], told["connections"]) == (122, 3)
    assert when(client, told["job"])["status"] == "succeeded"
    expect(page.locator("#story")).to_contain_text("the page was loaded again")
    assert page.input_value("#prompt").startswith("echo: ")
    if picture := os.environ.get("HEADRACE_TEST_PICTURE"):
        page.screenshot(path=picture, full_page=True)


def test_text_of_every_kind_is_shown_as_it_is(page: Page) -> None:
    text = "<b>&amp; 汉字 👩‍👩‍👧\u2028\r\n</script>"
    ask(page, text=text, token_ms=1)
    expect(page.locator("#state")).to_have_text("complete", timeout=LIMIT_MS)
    assert facts(page)["text"] == text
    assert page.locator("#answer b").count() == 0


def test_stop_cancels_the_job_and_the_page_says_so(page: Page, client: httpx.Client) -> None:
    ask(page, numbered=True, tokens=5, hang_at=3)
    expect(page.locator("#answer")).to_contain_text(" 2", timeout=LIMIT_MS)
    page.click("#stop")
    expect(page.locator("#state")).to_have_text("ended", timeout=LIMIT_MS)
    assert record(client, facts(page)["job"])["status"] == "cancelled"
    expect(page.locator("#send")).to_be_enabled()


def test_a_wrong_key_is_told_and_the_page_can_be_used_again(page: Page) -> None:
    page.fill("#key", "hr-not-a-key-of-anyone")
    page.click("#send")
    expect(page.locator("#story")).to_contain_text("Incorrect API key", timeout=LIMIT_MS)
    page.fill("#key", KEY)
    ask(page, text="well then")
    expect(page.locator("#answer")).to_have_text("well then", timeout=LIMIT_MS)


def test_an_answer_begun_anew_replaces_what_was_there(page: Page, client: httpx.Client) -> None:
    script: dict[str, Any] = {"numbered": True, "tokens": 8, "token_ms": 60, "fail_at": 4, "attempts_failing": 1}
    body = {"endpoint": CHAT, "body": chat(**script), "on_interrupt": "restart"}
    job_id = client.post("/v1/jobs", json=body).json()["id"]
    remembered = orjson.dumps(
        {"job": job_id, "state": "streaming", "bases": page.input_value("#bases"), "key": KEY, "model": ""}
    ).decode()
    page.evaluate("text => sessionStorage.setItem('headrace-example', text)", remembered)
    page.reload()
    expect(page.locator("#state")).to_have_text("complete", timeout=LIMIT_MS)
    assert facts(page)["text"] == "".join(f" {number}" for number in range(8))
    expect(page.locator("#story")).to_contain_text("the answer begins anew")


def test_a_page_of_a_site_that_is_not_allowed_gets_no_answer_to_read(fleet: Fleet, site: str) -> None:
    asks = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    with httpx.Client(base_url=fleet.url(), trust_env=False) as nobody:
        refused = nobody.options(CHAT, headers=asks)
        allowed = nobody.options(
            CHAT, headers={**asks, "origin": site, "access-control-request-headers": "authorization,last-event-id"}
        )
    assert refused.headers.get("access-control-allow-origin") is None
    assert allowed.headers["access-control-allow-origin"] == site
    assert "last-event-id" in allowed.headers["access-control-allow-headers"]
