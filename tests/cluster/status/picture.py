"""Open a page of a file in a headless Chromium without any network, take a picture, and say how it fits.

Run by the Python of .cache/servers, with one JSON object on standard input: `page` and `picture`, paths; `width` of the
window in pixels; and `scheme`, light or dark. The last line on standard output is a JSON object: `width` of what there
is to scroll over, `requests` beyond the page itself, `text`, and `headings`, the table's as a screen reader has them.
"""

from __future__ import annotations

import json
import sys

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"


def main() -> None:
    wanted = json.load(sys.stdin)
    asked: list[str] = []
    with sync_playwright() as playwright:
        # Root has no sandbox.
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        size = {"width": wanted["width"], "height": 800}
        page = browser.new_context(viewport=size, color_scheme=wanted["scheme"]).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{wanted['page']}")
        found = {
            "width": page.evaluate("document.documentElement.scrollWidth"),
            "requests": asked[1:],
            "text": page.inner_text("body"),
            "headings": [heading.inner_text() for heading in page.get_by_role("rowheader").all()],
        }
        page.screenshot(path=wanted["picture"], full_page=True)
        browser.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
