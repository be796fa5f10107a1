"""The app in an installed Chromium: images are dropped, the threshold is moved, and nothing leaves the machine."""

import socket
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

import pytest

from anomalib_defend.app.judging import Judge
from browsing import opened, until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def served(trained):
    pytest.importorskip("gradio", reason="gradio is not installed (the extra app)")
    from anomalib_defend.app.page import serve

    page = serve(trained / "model.ckpt", block=False)
    yield page
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
