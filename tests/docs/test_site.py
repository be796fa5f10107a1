"""The site is built strictly, as `make docs` does, and asks nothing of any network when it is read."""

import re
import shutil
import socket
from html.parser import HTMLParser

import pytest

from browsing import opened
from documents import ROOT

pytest.importorskip("mkdocs")

ASSETS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


@pytest.fixture(scope="module")
def asked():
    """Hosts that the site's build has looked up or connected to."""
    return []


@pytest.fixture(scope="module")
def site(tmp_path_factory, asked):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def refuse(*arguments, **_options):
        asked.append(arguments)
        raise OSError("refused by the test")

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    assert config.strict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        build(config)  # a warning ends it: a link that leads nowhere, a page without a place, a parameter that is none
    yield folder
    shutil.rmtree(folder)


@pytest.mark.usefixtures("site")
def test_nothing_is_fetched_for_the_build(asked):
    assert not asked


class Assets(HTMLParser):
    """What a browser fetches for a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [given[ASSETS[tag]] or ""] if tag in ASSETS and ASSETS[tag] in given else []
        if tag == "link" and given.get("rel") not in {"canonical", "prev", "next", "alternate"}:
            self.found.append(given.get("href") or "")


def is_foreign(url: str) -> bool:
    return re.match(r"(https?:)?//", url) is not None


def test_no_page_fetches_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        found = Assets(page.read_text(encoding="utf-8")).found
        assert found
        assert not [url for url in found if is_foreign(url)], page
    for style in site.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import )[\"']?([^\"')\s]+)", style.read_text(encoding="utf-8"))
        assert not [url for url in urls if is_foreign(url)], style


@pytest.mark.browser
def test_the_search_works_from_the_disk(site, browser):
    with opened(browser, (site / "index.html").as_uri()) as page:
        page.locator("input[name=query]").fill("beta-binomial count of false alarms")
        results = page.locator(".md-search-result__link")
        results.first.wait_for()
        assert any("/thresholds.html" in result.get_attribute("href") for result in results.all())


def test_what_is_foreign_is_seen():
    text = '<link rel="stylesheet" href="https://x/a.css"><script src="//x/a.js"></script><img src="a.png"><a href="https://x">'
    assert [url for url in Assets(text).found if is_foreign(url)] == ["https://x/a.css", "//x/a.js"]


def test_documents_beside_docs_are_pages(site):
    """With the links between them translated, in both directions."""
    defend = (site / "models" / "defend.html").read_text(encoding="utf-8")
    assert 'href="../measurements.html#which-blocks-attention-knows-the-object"' in defend
    assert 'href="models/dn2.html"' in (site / "which_method.html").read_text(encoding="utf-8")
    assert 'href="configs/data/cifar10_against_cifar100.yaml"' in (site / "data.html").read_text(encoding="utf-8")
    assert (site / "configs" / "data" / "cifar10_against_cifar100.yaml").is_file()
    assert (site / "notebooks" / "folder_to_report.ipynb").is_file()


def test_the_api_shows_arguments_with_their_words(site):
    page = (site / "api" / "models.html").read_text(encoding="utf-8")
    assert "dense_epochs" in page
    assert "Epochs of stage 1; 0 leaves it out." in page


@pytest.mark.browser
def test_a_browser_asks_the_disk_alone(site, browser):
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.click("text=Thresholds and p-values >> nth=0")
    page.wait_for_url("**/thresholds.html")
    assert "target_fpr" in page.inner_text("article")
    page.close()
    assert asked
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
