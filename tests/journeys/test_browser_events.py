"""A browser's own EventSource follows a job: cut, its gateway killed, its page loaded again, it misses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.fleet import KEY, Fleet, Member
from tests.support.proxied import ProxyThread
from tests.support.proxy import Cut, Ending, Fault
from tests.support.say import chat, follow, frames, submit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.lengthy,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

LIMIT_MS = 30_000
# What the page does is all here: it opens, and writes down what comes. That it begins again is the browser's own doing.
FOLLOW = """url => {
  window.seen = [];
  window.opened = 0;
  window.source = new EventSource(url);
  source.onopen = () => opened++;
  for (const name of ["message", "reset"])
    source.addEventListener(name, event => seen.push([event.lastEventId, event.data, name]));
}"""
OVER = "() => window.source.readyState === EventSource.CLOSED"


class Keyed(Fault):
    """Adds the key to each request, as a site's own server does for its visitors: EventSource can't send one."""

    async def to_server(self, data: bytes, *, begins: bool) -> bytes:
        return data.replace(b"\r\n", b"\r\nauthorization: Bearer " + KEY.encode() + b"\r\n", 1) if begins else data


class KeyedCuts(Keyed):
    """Adds the key, and ends one connection after the other, each after so many bytes of its answer."""

    def __init__(self, *cuts: tuple[int, Ending]) -> None:
        super().__init__()
        self._cuts = list(cuts)
        self._bytes = 0

    async def to_client(self, data: bytes) -> bytes:
        before, self._bytes = self._bytes, self._bytes + len(data)
        if not self._cuts or self._bytes < self._cuts[0][0]:
            return data
        self._bytes = 0
        count, ending = self._cuts.pop(0)
        raise Cut(ending, data[: count - before])


@pytest.fixture
def proxy(fleet: Fleet) -> Iterator[ProxyThread]:
    """The site's server: it knows the key, and passes everything on to the first gateway."""
    with ProxyThread(fleet.members["gateway-0"].port) as one:
        one.put_in(Keyed())
        yield one


@pytest.fixture
def doomed(fleet: Fleet) -> Iterator[Member]:
    """A gateway to be killed."""
    member = fleet.add("doomed", "gateway", cors_origins=fleet.members["gateway-0"].environ["HEADRACE_CORS_ORIGINS"])
    try:
        fleet.start_again("doomed")
        yield member
    finally:
        fleet.kill("doomed")
        del fleet.members["doomed"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser."""
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture
def page(browser: Browser, site: str) -> Iterator[Page]:
    """A page of a site whose pages may call the gateways."""
    tab = browser.new_page()
    tab.set_default_timeout(LIMIT_MS)
    tab.goto(f"{site}/resume.html")
    yield tab
    tab.close()


def job_of(client: httpx.Client, **more: Any) -> str:
    """The id of a job that says numbers, for some seconds."""
    return submit(client, chat(numbered=True, tokens=80, token_ms=25), **more)


def when(page: Page, count: int) -> None:
    """Waits until the page has seen so many events."""
    page.wait_for_function(f"() => window.seen.length >= {count}")


def told(client: httpx.Client, job_id: str) -> list[list[str]]:
    """Every event of a job as one reader without a cut gets them: id, data, name."""
    status, raw = follow(client, job_id)
    assert status == 200
    return [[frame.id, frame.data, frame.name or "message"] for frame in frames(raw)]


def test_a_stream_that_is_cut_again_and_again_reaches_the_page_once_and_in_order(
    page: Page, client: httpx.Client, proxy: ProxyThread
) -> None:
    job_id = job_of(client)
    # The second one ends within the headers.
    proxy.put_in(KeyedCuts((2_000, Ending.CLOSE), (300, Ending.RESET), (4_001, Ending.CLOSE)))
    page.evaluate(FOLLOW, f"http://127.0.0.1:{proxy.port}/v1/jobs/{job_id}/events")
    page.wait_for_function(OVER)
    assert page.evaluate("() => window.seen") == told(client, job_id)
    # After the last it asked once more, was told that there is nothing, and left it at that.
    assert page.evaluate("() => window.opened") == 3


def test_a_gateway_that_is_killed_is_replaced_by_another_and_nothing_comes_twice(
    page: Page, client: httpx.Client, fleet: Fleet, doomed: Member
) -> None:
    job_id = job_of(client)
    with ProxyThread(doomed.port, fleet.members["gateway-1"].port) as proxy:
        proxy.put_in(Keyed())
        page.evaluate(FOLLOW, f"http://127.0.0.1:{proxy.port}/v1/jobs/{job_id}/events")
        when(page, 10)
        fleet.kill(doomed.name)
        page.wait_for_function(OVER)
    assert page.evaluate("() => window.seen") == told(client, job_id)
    assert page.evaluate("() => window.opened") == 2


def test_a_page_that_is_loaded_again_goes_on_from_the_id_in_its_address_and_then_from_the_browsers_own(
    page: Page, client: httpx.Client, proxy: ProxyThread
) -> None:
    job_id = job_of(client)
    url = f"http://127.0.0.1:{proxy.port}/v1/jobs/{job_id}/events"
    page.evaluate(FOLLOW, url)
    when(page, 10)
    before = page.evaluate("() => window.seen")
    page.reload()
    proxy.put_in(KeyedCuts((3_000, Ending.CLOSE)))
    page.evaluate(FOLLOW, f"{url}?last_event_id={before[-1][0]}")
    page.wait_for_function(OVER)
    assert before + page.evaluate("() => window.seen") == told(client, job_id)
    assert page.evaluate("() => window.opened") == 2


def test_an_answer_begun_anew_is_told_as_a_reset(page: Page, client: httpx.Client, proxy: ProxyThread) -> None:
    script: dict[str, Any] = {"numbered": True, "tokens": 8, "token_ms": 60, "fail_at": 4, "attempts_failing": 1}
    job_id = submit(client, chat(**script), on_interrupt="restart")
    page.evaluate(FOLLOW, f"http://127.0.0.1:{proxy.port}/v1/jobs/{job_id}/events")
    page.wait_for_function(OVER)
    seen = page.evaluate("() => window.seen")
    at = [name for _, _, name in seen].index("reset")
    assert seen[at:] == told(client, job_id)[-len(seen[at:]) :]
    assert [name for _, _, name in seen].count("reset") == 1


def test_without_a_key_where_one_is_needed_the_browser_gives_up_at_once(page: Page, fleet: Fleet) -> None:
    page.evaluate(FOLLOW, f"{fleet.url()}/v1/jobs/job_default_{'0' * 32}/events")
    page.wait_for_function(OVER)
    assert page.evaluate("() => [window.opened, window.seen]") == [0, []]
