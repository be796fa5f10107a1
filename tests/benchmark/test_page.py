"""The page of a comparison: the same figures as in Markdown, names that are text, and what Chromium shows."""

import re

import numpy as np
import pytest
from PIL import Image

from anomalib_defend.benchmark.page import cost_plot, mistaken
from anomalib_defend.benchmark.report import sections
from anomalib_defend.benchmark.table import Table
from anomalib_defend.benchmark.verdict import verdict
from anomalib_defend.commands import main
from browsing import check_both_colour_schemes, opened, refused_by
from comparisons import make_scores, write_results

EVIL = '<img onerror="document.title=1" src=x>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models; of the images one file is there, and one name would be markup."""
    folder = tmp_path_factory.mktemp("comparison")
    picture = folder / "there.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(picture)
    scores = {}
    for number, (model, category) in enumerate([("DN2", "dog"), ("DN2", "cat"), ("A", "dog"), ("A", "cat")]):
        found = make_scores(number, 1 + number)
        found.loc[0, "image_path"] = str(picture)
        found.loc[1, "image_path"] = f"/data/{EVIL}.png"
        found.loc[[0, 1], "score"] = -9.0, 9.0  # the worst of both kinds
        found["called"] = (found.score > 1).astype(int)
        found["categories"] = [category if label == 0 else "cow; van" for label in found.label]
        found.loc[1, "categories"] = EVIL
        scores[model, category, 0] = found
    return write_results(folder, scores, seeds=(0,), papers={"VOC": "VOC uni-class"})


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "table.html"
    assert main(["benchmark", "report", str(folder), "--out", str(out)]) == 0
    return out


def test_it_holds_what_markdown_holds(folder, out) -> None:
    table, page = Table([folder]), out.read_text()
    assert verdict(table) in page
    found = sections(table)
    assert [section.title for section in found] == [
        "Image AUROC", "Paired difference to DN2", "False alarms and misses at the threshold", "Hardest novel class",
        "VOC: papers' own figures", "Pixel AUROC", "Cost",
    ]  # fmt: skip
    for text in (cell.text for section in found for line in section.lines for cell in line if cell.text):
        assert f">{text}</" in page
    assert '<td class="copied">0.919</td>' in page
    assert f"benchmark report {folder} --out {out}" in page


def test_names_are_text(out) -> None:
    page = out.read_text()
    assert "onerror" in page
    assert EVIL not in page


def test_the_most_mistaken_images(folder) -> None:
    found = mistaken(Table([folder]))
    worst = found[found.model == ""].iloc[:4]
    assert set(worst.image_path) == {str(folder / "there.png"), f"/data/{EVIL}.png"}
    assert (worst.share == 1).all()
    assert (found.groupby("model").size() == 12).all()
    one = found[(found.model == "A") & (found.category == "dog")].iloc[-1]
    scores = Table([folder]).finished("A", "VOC", "dog")[0].scores
    mine = scores[scores.image_path == one.image_path].iloc[0]
    others = scores[scores.label != mine.label].score
    assert one.share == pytest.approx((others > mine.score).mean() if one.label else (others < mine.score).mean())


def test_where_the_plot_has_its_points(folder) -> None:
    plot = cost_plot(Table([folder]), "VOC")
    assert [point.across for point in plot.points] == [0, 0]  # 10 s, from 10 to 100
    aurocs = [float(point.words.rpartition(" ")[2]) for point in plot.points]
    ends = [float(plot.up[index][1]) for index in (0, -1)]
    assert [ends[0] + point.up * (ends[1] - ends[0]) for point in plot.points] == pytest.approx(aurocs, abs=1e-3)


def test_cells_of_older_versions_and_none_at_all(tmp_path) -> None:
    write_results(tmp_path, {("DN2", "dog", 0): make_scores(0, 1), ("A", "dog", 0): "ValueError: no"})
    assert main(["benchmark", "report", str(tmp_path), "--out", str(tmp_path / "old.html")]) == 0
    page = (tmp_path / "old.html").read_text()
    assert "Not recorded" in page
    assert "failed, ValueError: no" in page
    for file in tmp_path.glob("*/result.json"):
        file.unlink()
    assert main(["benchmark", "report", str(tmp_path), "--out", str(tmp_path / "none.html")]) == 0
    page = (tmp_path / "none.html").read_text()
    assert "0 of 2 cells are finished" in page
    assert "Measured on" not in page


@pytest.mark.browser
def test_the_page_in_chromium(browser, out) -> None:
    with opened(browser, out.as_uri(), color_scheme="light") as page:
        assert page.locator("figure").count() == 12
        assert page.locator("figure img").count() == 2  # of one file, in two tests
        assert page.get_attribute("figure img", "alt").endswith("there.png, novel")
        page.select_option("#by-truth", "0")
        said = page.locator(".say").all_inner_texts()
        assert all(re.match(r"normal, yet higher than [\d.]+ % of the novel images", text) for text in said)
        assert page.locator("figure").count() > 0
        page.select_option("#by-model", label="A")
        page.select_option("#by-truth", "")
        assert page.locator("figure").count() == 12
        assert EVIL in "".join(page.locator("figcaption").all_inner_texts())
        assert page.title() == "Small"
        assert page.get_attribute(".plot svg", "aria-label").startswith("Training time against AUROC on VOC. DN2: 10 s")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # wide tables scroll by themselves
        page.locator("#by-model").focus()
        reached = []
        for _ in range(2):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        assert reached == ["by-data", "by-truth"]
        assert page.get_attribute(".scroll", "tabindex") == "0"
        check_both_colour_schemes(page, ("#verdict", "td", "figcaption", "footer", ".note", "nav a"))
        assert not page.said
        assert [url for url in page.asked if not url.startswith("data:")] == page.asked[:1]  # the page itself
        assert refused_by(page) == "img-src"
