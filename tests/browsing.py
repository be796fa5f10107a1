"""What the tests of pages ask of an installed Chromium."""

import re
import time
from contextlib import contextmanager


@contextmanager
def opened(browser, address, **options):
    """A page, with what the console says (``said``) and what is asked for (``asked``)."""
    page = browser.new_page(viewport={"width": 1000, "height": 900}, **options)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    yield page
    page.close()


def until(condition, seconds=20):
    """Wait; Playwright's own way is refused by a page's policy."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def check_both_colour_schemes(page, elements):
    """Text of the elements on the page's ground has the contrast of WCAG AA, light and dark, once it has changed."""

    def ground():
        return _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    def contrast(element):
        ink = _luminance(page.evaluate(f"getComputedStyle(document.querySelector('{element}')).color"))
        low, high = sorted([ground(), ink])
        return (high + 0.05) / (low + 0.05)

    for scheme, is_right in (("light", lambda: ground() > 0.8), ("dark", lambda: ground() < 0.1)):
        page.emulate_media(color_scheme=scheme)
        until(is_right)
        for element in elements:
            until(lambda element=element: contrast(element) >= 4.5)
    page.emulate_media(color_scheme="light")


def refused_by(page):
    """Which rule of the page's policy refuses a picture of elsewhere; ``asked`` if none does."""
    return page.evaluate(
        """() => new Promise(done => {
            document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));
            const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; setTimeout(() => done('asked'), 3000);
        })"""
    )
