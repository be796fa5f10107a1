"""The app in an installed Chromium: images are dropped, the threshold is moved, and nothing leaves the machine."""

import socket
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import pytest

from anomalib_defend.app.judging import Judge
from anomalib_defend.app.page import MOST_BYTES
from browsing import check_both_colour_schemes, opened, until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def served(trained):
    """The page; ``asked`` are the hosts that this process has connected to, or looked up, since it began."""
    pytest.importorskip("gradio", reason="gradio is not installed (the extra app)")
    from anomalib_defend.app.page import serve

    asked: list[object] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connected(self, address):
        asked.append(address[0] if isinstance(address, tuple) else "a file")
        return connect(self, address)

    def looked_up(host, *arguments, **options):
        asked.append(host)
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connected)
        patch.setattr(socket, "getaddrinfo", looked_up)
        page = serve(trained / "model.ckpt", block=False)
        yield SimpleNamespace(local_url=page.local_url, share=page.share, share_url=page.share_url, asked=asked)
        page.close()


def test_images_are_dropped_and_the_threshold_is_moved(browser, served, trained, images, tmp_path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    evil = tmp_path / "<img onerror=alert(1) src=x>.png"
    evil.write_bytes(images[0].read_bytes())
    judge = Judge(trained / "model.ckpt")
    scores = [judge(path).raw for path in (*images[1:], evil)]

    def novel(calibration):
        return sum(score > calibration.image.threshold for score in scores)

    with opened(browser, served.local_url) as page:
        page.locator("#files input[type=file]").set_input_files([*map(str, images[1:]), str(evil), str(broken)])
        verdict = page.locator("#verdict textarea")
        until(lambda: "called novel" in verdict.input_value(), 60)
        assert f"of {len(images)} images" in verdict.input_value()
        assert "1 could not be scored" in verdict.input_value()
        until(lambda: "broken.png" in page.inner_text("#table"))
        assert "cannot be scored" in page.inner_text("#table")
        assert "onerror=alert" in page.inner_text("#table")  # a name is text
        until(lambda: page.locator("#pictures img").count() == len(images))
        assert int(verdict.input_value().split()[0]) == novel(judge.calibration)
        slider = page.locator("#target input[type=number]")
        slider.fill("0.5")
        slider.press("Enter")
        until(lambda: "target_fpr=0.5," in page.locator("#promise textarea").input_value(), 60)
        assert int(verdict.input_value().split()[0]) == novel(judge.calibration.moved(0.5))
        assert novel(judge.calibration.moved(0.5)) > novel(judge.calibration)
        assert not [line for line in page.said if line != "Method not implemented."]  # Gradio's own
        hosts = {urlsplit(url).hostname for url in page.asked if not url.startswith(("data:", "blob:"))}
        assert hosts == {"127.0.0.1"}
    assert {"127.0.0.1"} <= set(served.asked) <= {"127.0.0.1", "a file"}  # no analytics, no look for a newer version


def test_what_the_page_would_ask_of_others_is_refused(browser, served) -> None:
    with opened(browser, served.local_url) as page:
        answer = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'asked', error => String(error))")
        assert "Failed to fetch" in answer
        assert any("Content Security Policy" in line for line in page.said)


def test_it_listens_on_the_loopback_address_alone(served) -> None:
    port = urlsplit(served.local_url).port
    with socket.create_connection(("127.0.0.1", port), 2):
        pass
    own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in own - {"127.0.0.1"}:
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection((address, port), 2)
    assert not served.share
    assert not served.share_url


def test_no_file_of_the_machine_is_served(served, trained) -> None:
    for path in ("/etc/passwd", str(trained / "model.ckpt"), __file__):
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{served.local_url}gradio_api/file={quote(path)}", timeout=20)  # noqa: S310
        assert refused.value.code in {403, 404}


def test_a_file_that_is_too_large_is_refused(served) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'

    def upload(size):
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        body = head + bytes(size) + b"\r\n--x--\r\n"
        with urlopen(Request(f"{served.local_url}gradio_api/upload", body, kind), timeout=60) as answer:  # noqa: S310
            return answer.status

    assert upload(MOST_BYTES) == 200
    with pytest.raises(HTTPError) as refused:
        upload(MOST_BYTES + 1)
    assert refused.value.code == 413


def test_keyboard_words_and_both_colour_schemes(browser, served, images) -> None:
    with opened(browser, served.local_url, color_scheme="light") as page:
        page.locator("#files input[type=file]").set_input_files(list(map(str, images)))
        until(lambda: page.locator("#pictures img").count() == len(images), 60)
        assert page.evaluate("[...document.querySelectorAll('#pictures img')].every(one => one.alt.includes(': '))")
        check_both_colour_schemes(page, ("#verdict textarea", "#promise textarea", "h1"))
        slider, number = page.locator("#target input[type=range]"), page.locator("#target input[type=number]")
        before = float(number.input_value())
        slider.focus()
        page.keyboard.press("ArrowRight")
        until(lambda: float(number.input_value()) > before)
        promise = page.locator("#promise textarea")
        until(lambda: f"target_fpr={float(number.input_value()):g}," in promise.input_value(), 60)
