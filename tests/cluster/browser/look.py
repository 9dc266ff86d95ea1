"""Use MLflow's web page in a headless Chromium as a person does, and say what there was to see.

Run by the Python of .cache/servers, with one JSON object on standard input: `url`, `username`, `password`, the
`address` at which the URL's host is, and more `arguments` of Chromium. `experiment` is opened, and of it either the
`charts`, of which a picture is taken into that file, or `run` and its `artifact`, a file of text. What is to be seen on
each before it is read is in `texts`, by the same names.

The last line on standard output is a JSON object: `status` of the first page; `pages`, the text of each by its name;
and `requests`: each with its URL and its status, or the error that it ended with.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page, Request, sync_playwright

CHROMIUM = "/usr/bin/chromium"
SIZE = {"width": 1200, "height": 680}
TIMEOUT = 30_000


def look(wanted: dict[str, Any]) -> dict[str, Any]:
    """Open the page, log in, and open what is wanted."""
    rules = f"MAP {urlsplit(wanted['url']).hostname} {wanted['address']}, MAP * ~NOTFOUND"
    # Root has no sandbox. No name but the server's leads anywhere: the page has to do without the Internet.
    arguments = ["--no-sandbox", f"--host-resolver-rules={rules}", *wanted["arguments"]]
    requests: list[dict[str, Any]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        credentials = {"username": wanted["username"], "password": wanted["password"]}
        page = browser.new_context(http_credentials=credentials, viewport=SIZE).new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("requestfinished", lambda request: requests.append(seen(request)))
        page.on("requestfailed", lambda request: requests.append(seen(request)))
        response = page.goto(wanted["url"])
        pages = {"login": page.inner_text("body")}
        if response.ok:
            pages |= walk(page, wanted)
        browser.close()
    return {"status": response.status, "pages": pages, "requests": requests}


def seen(request: Request) -> dict[str, Any]:
    """A request, and how it ended."""
    response = None if request.failure else request.response()
    return {"url": request.url, "status": response.status if response else request.failure}


def walk(page: Page, wanted: dict[str, Any]) -> dict[str, str]:
    """Click from the first page to what is wanted."""
    texts = wanted["texts"]
    # The page first shows what there is for language models.
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name=wanted["experiment"]).first.click()
    pages = {"experiment": text_of(page, texts["experiment"])}
    if "charts" in wanted:
        page.get_by_role("button", name="Close").first.click()
        page.locator("label:has(input[value=CHART])").click()
        pages["charts"] = text_of(page, texts["charts"])
        # What is drawn has no text to wait for.
        page.wait_for_timeout(3000)
        page.screenshot(path=wanted["charts"])
        return pages
    page.get_by_role("link", name=wanted["run"]).first.click()
    pages["run"] = text_of(page, texts["run"])
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(wanted["artifact"]).first.click()
    return pages | {"artifact": text_of(page, texts["artifact"])}


def text_of(page: Page, awaited: str) -> str:
    """The text of the page, once something is to be seen on it."""
    page.get_by_text(awaited).first.wait_for()
    return page.inner_text("body")


if __name__ == "__main__":
    print(json.dumps(look(json.load(sys.stdin))))
