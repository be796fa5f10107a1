"""The page in an installed Chromium: the threshold moves and the numbers follow, filters work, nothing is asked."""

import re

import pytest

import browsing
from anomalib_defend.decision import expected_count
from anomalib_defend.decision.table import Row
from anomalib_defend.reporting.page import write_report
from browsing import check_both_colour_schemes, refused_by, until

from .conftest import EVIL, VALIDATION, make_rows, write_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(browser, report):
    with browsing.opened(browser, report.path.as_uri(), color_scheme="light") as page:
        yield page


@pytest.fixture
def page(opened):
    opened.click("#reset")
    for name in ("by-verdict", "by-outcome", "by-category"):
        opened.select_option(f"#{name}", "")
    opened.uncheck("#heat")
    yield opened
    assert not opened.said
    assert [url for url in opened.asked if not url.startswith("data:")] == opened.asked[:1]  # the page itself


def number(page, name):
    return int(re.match(r"\d+", page.inner_text(f"#{name}"))[0])


def value(page):
    return float(page.get_attribute("#slider", "aria-valuenow"))


def check_numbers(page, rows):
    """Every number that is shown follows from the table and the threshold."""
    threshold = value(page)
    called = {(row.true_label, row.score > threshold): 0 for row in rows}
    for row in rows:
        called[row.true_label, row.score > threshold] += 1
    alarms, found = called.get((False, True), 0), called.get((True, True), 0)
    shown = {name: number(page, name) for name in ("tn", "fp", "fn", "tp", "alarms", "misses", "called")}
    assert shown == {
        "tn": 40 - alarms, "fp": alarms, "fn": 40 - found, "tp": found, "alarms": alarms, "misses": 40 - found,
        "called": alarms + found,
    }  # fmt: skip
    if alarms + found:
        share = 100 * found / (alarms + found)
        assert page.inner_text("#precision") == f"{found} of {alarms + found} ({share:.1f} %)"


def test_the_numbers_at_the_runs_threshold(page, rows) -> None:
    assert value(page) == 0.5
    check_numbers(page, rows)


def test_the_threshold_is_dragged_by_mouse(page, rows) -> None:
    box = page.locator("#slider .handle").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for way in (60, -200):
        page.mouse.move(x + way, y, steps=3)
        assert (value(page) - 0.5) * way > 0
        check_numbers(page, rows)
    page.mouse.up()
    moved = value(page)
    page.mouse.move(x, y)
    assert value(page) == moved  # it was let go
    page.click("#reset")
    assert value(page) == 0.5


def test_the_threshold_is_dragged_by_touch(page, rows) -> None:
    """As a browser tells a finger: pointer events of the kind ``touch``, from Chromium's own input."""
    box = page.locator("#slider .handle").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x + 50, "y": y}]),
        ("touchMove", [{"x": x + 100, "y": y}]),
        ("touchEnd", []),
    ):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    until(lambda: value(page) > 0.55)
    check_numbers(page, rows)


def test_the_threshold_is_moved_by_keys(page, rows) -> None:
    slider = page.locator("#slider")
    assert slider.get_attribute("role") == "slider"
    slider.focus()
    before = value(page)
    for key, sign in (("ArrowRight", 1), ("ArrowLeft", -1), ("PageUp", 1), ("PageDown", -1)):
        page.keyboard.press(key)
        assert (value(page) - before) * sign > 0
        before = value(page)
        check_numbers(page, rows)
    page.keyboard.press("Home")
    assert number(page, "called") == 80
    page.keyboard.press("End")
    assert number(page, "called") == 0
    assert page.inner_text("#precision") == "nothing is called novel"
    assert slider.get_attribute("aria-valuetext").endswith("called novel")


def test_the_expected_false_alarms_are_scipys(page) -> None:
    page.locator("#slider").focus()
    for presses in (0, 5, 10, 20):
        for _ in range(presses):
            page.keyboard.press("ArrowLeft")
        validation = page.evaluate("JSON.parse(document.getElementById('data').textContent).validation")
        rank = 1 + sum(score > value(page) for score in validation)
        wanted = expected_count(VALIDATION, rank, 40)
        words = f"{wanted.mean:.1f} of 40 normal images (95 % interval {wanted.low:.0f} to {wanted.high:.0f}, from 99"
        assert page.inner_text("#expected").startswith(words)


def test_the_mark_lies_on_the_roc_curve(page, rows) -> None:
    mark = [float(page.get_attribute("#roc-mark", name)) for name in ("cx", "cy")]
    alarms, found = number(page, "alarms") / 40, number(page, "tp") / 40
    assert mark == pytest.approx([40 + 200 * alarms, 210 - 200 * found])
    points = {tuple(map(float, point.split(","))) for point in page.get_attribute("#roc .curve", "points").split()}
    assert any(point == pytest.approx(mark, abs=0.01) for point in points)


def test_the_gallery_is_sorted_and_filtered(page, rows) -> None:
    def scores():
        return [float(re.search(r"score ([\d.]+)", text)[1]) for text in page.locator("figcaption").all_inner_texts()]

    assert scores() == sorted(scores(), reverse=True)
    assert page.inner_text("#count") == "1 to 48 of 80 images"
    page.click("#next")
    assert page.inner_text("#count") == "49 to 80 of 80 images"
    page.select_option("#by-outcome", "miss")
    assert page.locator("figure").count() == number(page, "misses")
    assert all("missed" in text for text in page.locator(".say").all_inner_texts())
    page.select_option("#by-outcome", "mistake")
    assert page.locator("figure.mistake").count() == number(page, "misses") + number(page, "alarms")
    page.select_option("#by-outcome", "")
    page.select_option("#by-verdict", "novel")
    page.select_option("#by-category", label="person")
    held = [row for row in rows if "person" in row.categories and row.label]
    assert page.locator("figure").count() == len(held)
    page.select_option("#by-verdict", "")
    page.select_option("#by-category", "")
    page.select_option("#order", "low")
    assert scores() == sorted(scores())
    page.select_option("#order", "near")
    assert scores() == sorted(scores(), key=lambda score: abs(score - 0.5))
    page.select_option("#order", "high")


def test_the_gallery_follows_the_threshold(page) -> None:
    page.select_option("#by-verdict", "novel")
    page.locator("#slider").focus()
    page.keyboard.press("End")
    until(lambda: page.inner_text("#count") == "No image is so.")


def test_pictures_have_words_and_heat_maps(page, rows) -> None:
    image = page.locator("figure img").first
    plain = image.get_attribute("src")
    assert page.evaluate("[...document.images].every(one => one.alt && one.complete && one.naturalWidth > 0)")
    page.check("#heat")
    assert page.locator("figure img").first.get_attribute("src") != plain
    assert page.locator("figure img").first.get_attribute("alt").startswith("Heat map of ")


def test_a_name_is_text_and_a_box_is_told(page) -> None:
    page.select_option("#by-category", label=EVIL)
    assert page.locator("figure").count() == 1
    assert EVIL in page.inner_text("figcaption .name")
    assert "10 10 60 60" in page.inner_text("figcaption")
    assert page.title().startswith("Report of test.csv")  # the name did not run
    assert page.locator("img:not(figure img)").count() == 0


def test_rates_of_categories(page, rows) -> None:
    lines = {line.split("\t")[0]: line.split("\t")[1:] for line in page.inner_text("#categories tbody").split("\n")}
    for name in ("dog", "cat", "person", "traffic light"):
        held = [row for row in rows if name in row.categories.split("; ")]
        normal, novel = ([row for row in held if row.true_label is truth] for truth in (False, True))
        assert lines[name][0] == str(len(normal))
        assert lines[name][2] == str(len(novel))
        if novel:
            assert lines[name][3].startswith(f"{sum(not row.label for row in novel)} of {len(novel)} (")
    assert next(iter(lines)) == "all images"
    assert (lines["all images"][0], lines["all images"][2]) == ("40", "40")
    assert lines["all images"][1].startswith(f"{number(page, 'alarms')} of 40 (")
    rates = [
        sum(row.label is not row.true_label for row in rows if row.true_label is truth) / 40 for truth in (False, True)
    ]

    def beyond(name):
        held = [row for row in rows if name in row.categories.split("; ")]
        return round(sum((row.label is not row.true_label) - rates[row.true_label] for row in held), 9)

    order = [beyond(name) for name in list(lines)[1:]]
    assert order == sorted(order, reverse=True)


def test_all_controls_are_reached_by_keyboard(page) -> None:
    page.focus("#slider")
    assert page.get_attribute("#slider", "tabindex") == "0"
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["reset", "order", "by-verdict", "by-outcome", "by-category", "heat", "next"]


def test_both_colour_schemes_can_be_read(page) -> None:
    check_both_colour_schemes(page, ("#verdict", "dt", "figcaption", "footer"))


def test_no_request_can_leave_the_page(opened) -> None:
    """The page's own policy refuses it, whatever would ask."""
    with browsing.opened(opened.context.browser, opened.url) as page:
        assert refused_by(page) == "img-src"


def test_a_page_without_labels(browser, tmp_path) -> None:
    write_run(tmp_path, make_rows(20, labelled=False), "predictions")
    found = write_report(tmp_path)
    with browsing.opened(browser, found.path.as_uri()) as page:
        assert not page.is_visible("#confusion")
        assert not page.is_visible("#alarms")
        assert not page.is_visible("#categories-section")
        assert number(page, "called") == sum(row.label for row in make_rows(20))
        assert "of 20 images, if all of them were normal" in page.inner_text("#expected")
        page.locator("#slider").focus()
        page.keyboard.press("Home")
        assert number(page, "called") == 20
        assert page.locator("figure .none").count() == 20
        assert not page.said


def test_small_scores_are_told_apart(browser, tmp_path) -> None:
    """As of a model with ``enable_normalization=False``."""
    rows = make_rows(20)
    for row in rows:
        row.threshold *= 1e-6
        row.score = row.raw_score = 1e-6 * row.raw_score
    write_run(tmp_path, rows, calibration=None)
    found = write_report(tmp_path)
    with browsing.opened(browser, found.path.as_uri()) as page:
        assert float(page.inner_text("#threshold")) == pytest.approx(rows[0].threshold, rel=1e-2)
        assert number(page, "called") == sum(row.label for row in rows)
        scores = [re.search(r"score (-?[\d.]+)", text)[1] for text in page.locator("figcaption").all_inner_texts()]
        assert len(set(scores)) == 20


def test_upper_bounds_are_told_and_stay_normal(browser, tmp_path) -> None:
    rows = [Row("/data/a.png", 0.4, False, p_value=0.2, upper_bound=True), Row("/data/b.png", 0.7, True, p_value=0.01)]
    table = write_run(tmp_path, rows)
    lines = table.read_text().splitlines()
    marks = ["upper_bound", "yes", "no"]
    table.write_text("".join(f"{line},{mark}\n" for line, mark in zip(lines, marks, strict=True)))
    with browsing.opened(browser, write_report(table).path.as_uri()) as page:
        assert "score at most 0.4000, p-value at least 0.2" in page.inner_text("body")
        assert "score 0.7000, p-value 0.01" in page.inner_text("body")
        assert "Of 1 image the first view alone was looked at" in page.inner_text("body")
        page.press("#slider", "Home")
        assert value(page) == 0.5 == float(page.get_attribute("#slider", "aria-valuemin"))
        page.press("#slider", "End")
        assert value(page) > 0.7


def test_a_run_without_threshold_has_none_to_go_back_to(browser, tmp_path) -> None:
    rows = make_rows(20)
    for row in rows:
        row.label = row.threshold = None
    write_run(tmp_path, rows, calibration=None)
    with browsing.opened(browser, write_report(tmp_path).path.as_uri()) as page:
        assert not page.is_visible("#reset")
        assert page.inner_text("#verdict").startswith("20 images with a score and no verdict")
        assert "not known" in page.inner_text("#expected")
        assert not page.said
