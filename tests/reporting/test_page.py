"""What is in the page, read as text: sentence, figures, facts, names that are no markup, and its size."""

import base64
import re
import time

import pytest
import yaml

from anomalib_defend.commands import main
from anomalib_defend.decision import expected_count
from anomalib_defend.decision.table import Row
from anomalib_defend.reporting import pictures
from anomalib_defend.reporting.page import write_report
from anomalib_defend.reporting.run import find_run

from .conftest import EVIL, VALIDATION, calibration, draw, make_rows, write_run


def test_the_sentence(report, rows) -> None:
    novel = sum(row.label for row in rows)
    hundred, forty = expected_count(VALIDATION, 5, 100), expected_count(VALIDATION, 5, 40)
    wrong = [row.true_label for row in rows if row.label is not row.true_label]
    assert report.sentence == (
        f"Of 80 images {novel} do not show “dog”, says the model; about 5 of 100 normal images are expected to be "
        f"called novel (95 % interval {hundred.low:.0f} to {hundred.high:.0f}). Of the 40 normal ones "
        f"{wrong.count(False)} were called novel (2.0 expected, 95 % interval {forty.low:.0f} to {forty.high:.0f}); of "
        f"the 40 novel ones {wrong.count(True)} were missed. 1 image could not be scored."
    )
    assert report.sentence in report.path.read_text()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"category": "dog", "setting": "uni_class"}, "do not show “dog”, says"),
        ({"categories": ["cat", "dog"], "setting": "uni_class"}, "do not show “cat” or “dog”, says"),
        ({"categories": ["dog"], "setting": "leave_one_out"}, "are novel, says"),
        ({"name": "MVTecAD", "category": "bottle"}, "are novel, says"),  # its novel images are of bottles, too
    ],
)
def test_what_the_novel_images_are_said_to_be(tmp_path, data, words) -> None:
    write_run(tmp_path, make_rows(20), data=data)
    assert words in write_report(tmp_path).sentence


def test_new_images_are_said_to_lack_what_the_training_took_for_normal(tmp_path) -> None:
    normal = {"category": "dog", "categories": ["dog"], "setting": "uni_class"}
    write_run(tmp_path, make_rows(20), data={"name": "PredictFolder"}, normal=normal)
    assert "do not show “dog”, says" in write_report(tmp_path).sentence


@pytest.mark.parametrize(
    ("truth", "words"), [(False, "normal ones {} were called novel"), (True, "novel ones {} were missed")]
)
def test_a_test_of_one_kind_of_images(tmp_path, truth, words) -> None:
    rows = [row for row in make_rows(20) if row.true_label is truth]
    write_run(tmp_path, rows)
    found = write_report(tmp_path)
    assert f" Of the 10 {words.format(sum(row.label is not truth for row in rows))}" in found.sentence
    assert "of the 0" not in found.sentence
    assert 'id="roc"' not in found.path.read_text()


def test_images_without_a_score_are_counted(tmp_path) -> None:
    write_run(tmp_path, [*make_rows(1), *(Row(f"{number}.png", error="the file is empty") for number in range(203))])
    found = write_report(tmp_path)
    assert found.sentence.startswith("Of 1 image ")
    assert found.sentence.endswith(" 203 images could not be scored.")
    page = found.path.read_text()
    assert "<h3>203 images could not be scored</h3>" in page
    assert "<li>and 3 more: see the table</li>" in page


def test_what_was_run(report) -> None:
    page = report.path.read_text()
    for words in (
        "<dt>Model</dt><dd>Defend</dd>", "<dt>Encoder</dt><dd>deit_tiny_patch16_224</dd>", "train: 300 normal",
        "test: 40 normal, 40 novel", f"{VALIDATION} normal ones", "<dt>Seed</dt><dd>3</dd>", "anomalib 2.7.0", "12.5 s",
        "<pre>anomalib test --model Defend --data SemanticFolder</pre>", "anomalib-defend report",
        "/data/broken.png: the file is empty",
    ):  # fmt: skip
        assert words in page
    assert "Not known" not in page


def test_names_are_text(report) -> None:
    page = report.path.read_text()
    assert "onerror" in page
    assert EVIL not in page
    assert "</script" not in re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]


def test_a_page_without_labels(tmp_path) -> None:
    write_run(tmp_path, make_rows(20, labelled=False), "predictions")
    found = write_report(tmp_path)
    assert "were missed" not in found.sentence
    assert "expected to be called novel" in found.sentence
    page = found.path.read_text()
    assert 'id="roc"' not in page
    assert "Not known from what the run has kept: model, encoder, data" in page
    assert found.pictures == 0  # there are neither pictures nor images
    assert "20 images could be read no more" in page


def test_the_seed_of_a_run(tmp_path) -> None:
    for name, content, seed, known in (
        ("drawn", {"seed": 3, "arguments": {"seed": None}}, "3", True),
        ("a model without one", {"seed": None, "arguments": {"backbone": "x"}}, "none, nothing is drawn", True),
        ("not kept", {"seed": None}, None, False),
    ):
        write_run(tmp_path / name, make_rows(20), **content)
        run = find_run(tmp_path / name)
        assert dict(run.facts()).get("Seed") == seed, name
        assert ("seed" not in run.unknown()) == known, name


def test_a_run_of_an_older_version(tmp_path) -> None:
    """No description: the configuration tells the model, and a calibration what to expect."""
    table = write_run(tmp_path / "run", make_rows(20))
    table.with_suffix(".json").unlink()
    config = {"model": {"class_path": "a.DN2", "init_args": {"backbone": "x", "weights": None}}, "ckpt_path": "m.ckpt"}
    table.with_name("config.yaml").write_text(yaml.safe_dump({**config, "data": {"class_path": "a.Voc"}}))
    facts = dict(find_run(tmp_path / "run").facts())
    assert (facts["Model"], facts["Encoder"], facts["Checkpoint"]) == ("DN2", "x", "m.ckpt")
    assert "is not known" in write_report(table).sentence
    assert "There is no test.json beside test.csv: the run was stopped" in write_report(table).sentence
    saved = tmp_path / "model.calibration.json"
    calibration().save(saved)
    assert "about 5 of 100" in write_report(table, model=saved).sentence


def test_a_model_of_another_threshold_is_refused(tmp_path) -> None:
    table = write_run(tmp_path / "run", make_rows(20))
    moved = tmp_path / "moved.calibration.json"
    calibration().moved(0.2).save(moved)
    with pytest.raises(ValueError, match=r"moved\.calibration\.json has the threshold 0\.\d+, .*test\.csv was made"):
        write_report(table, model=moved)


def test_the_image_itself_is_shown_where_there_is_no_picture(tmp_path) -> None:
    draw(tmp_path / "a.png", 0)
    row = Row(str(tmp_path / "a.png"), 0.5, False, box=(10, 10, 60, 60), picture="images/removed.png")
    other = Row(str(tmp_path / "b.png"), 0.5, False)
    (shown, none) = pictures.encoded([row, other], tmp_path)
    assert shown[0]
    assert shown[1] == ""  # no heat map
    assert none is None


def test_images_that_are_gone_have_no_picture(tmp_path, monkeypatch) -> None:
    """Of many, too, where the page says which were chosen."""
    for name, count in (("ALL", 10), ("SHOWN", 6), ("MISTAKES", 3)):
        monkeypatch.setattr(pictures, name, count)
    rows = make_rows(20)
    rows[0].path = str(tmp_path / "there.png")
    rows[0].score, rows[0].label = 0.5, False  # at the threshold: it is chosen
    draw(tmp_path / "there.png", 0)
    write_run(tmp_path, rows)
    found = write_report(tmp_path)
    assert found.pictures == 1
    words = r"Of 20 images 1 have a picture: 0 of the \d+ mistakes .* without\. 5 images could be read no more"
    assert re.search(words, found.path.read_text())


def test_image_and_heat_map_are_cut_out_of_a_picture(tmp_path, finished, rows) -> None:
    (shown,) = pictures.encoded(rows[:1], finished)
    assert all(shown)
    assert all(len(base64.b64decode(text)) <= pictures.BYTES for text in shown)  # of noise
    draw(tmp_path / "images" / "0.png", 0, heat=False)
    (shown,) = pictures.encoded([Row("", 0.5, picture="images/0.png")], tmp_path)
    assert shown[0]
    assert not shown[1]


@pytest.mark.slow
def test_a_thousand_images_are_below_15_mb(tmp_path) -> None:
    """Noise with heat map, at the size that a run draws: nothing is larger."""
    rows = make_rows(1000)
    for index, row in enumerate(rows):
        row.picture = f"images/{index % 8}.png"
        if index < 8:
            draw(tmp_path / row.picture, index, side=256)
    write_run(tmp_path, rows)
    found = write_report(tmp_path)
    assert found.pictures == 1000
    assert found.path.stat().st_size <= 15e6


@pytest.mark.slow
def test_ten_thousand_images(tmp_path) -> None:
    rows = make_rows(10_000)
    for index, row in enumerate(rows):
        row.picture = f"images/{index % 8}.png"
        if index < 8:
            draw(tmp_path / row.picture, index, side=256)
    write_run(tmp_path, rows)
    start = time.monotonic()
    found = write_report(tmp_path)
    assert time.monotonic() - start < 120
    assert found.path.stat().st_size <= 40e6
    assert found.pictures == pictures.SHOWN
    mistakes = sum(row.label is not row.true_label for row in rows)
    words = rf"Of 10000 images {pictures.SHOWN} have a picture: (\d+) of the {mistakes} mistakes and the images nearest"
    shown = int(re.search(words, found.path.read_text())[1])
    assert pictures.MISTAKES <= shown < mistakes  # some of the nearest are mistakes as well


def test_what_is_shown_of_many_images() -> None:
    rows = make_rows(3000)
    shown = pictures.chosen(rows, 0.5)
    assert len(set(shown)) == pictures.SHOWN
    wrong = {index for index, row in enumerate(rows) if pictures.is_mistake(row)}
    assert wrong <= set(shown)
    distance = [abs(row.score - 0.5) for row in rows]
    others = set(shown) - wrong
    assert max(distance[index] for index in others) <= min(
        distance[index] for index in range(3000) if index not in others | wrong
    )


def test_the_command(finished, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(finished), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Of 80 images" in printed
    assert f"Written: {out} (" in printed
    assert out.is_file()


def test_the_command_in_a_folder_whose_name_is_no_utf8(tmp_path, capsys) -> None:
    folder = tmp_path / b"St\xfcck".decode("utf-8", "surrogateescape")
    write_run(folder, make_rows(4))
    assert main(["report", str(folder)]) == 0
    assert r"St\xfcck/report.html (" in capsys.readouterr().out
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "does not exist: give a run's folder"),
        ("", "There are some in .*below"),
        ("empty", "test` writes one"),
        ("empty/test.csv", "holds no scored image"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, name, message) -> None:
    write_run(tmp_path / "below", make_rows(4))
    (tmp_path / "empty").mkdir()
    if name.endswith(".csv"):
        write_run(tmp_path / "empty", [Row("a.png", error="the file is empty")])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        write_report(tmp_path / name)


@pytest.mark.parametrize("content", [{"format": 2}, {"format": 1, "image": None}, [1]])
def test_a_calibration_that_cannot_be_read_is_named(tmp_path, content) -> None:
    write_run(tmp_path, make_rows(4), calibration=content)
    with pytest.raises(ValueError, match=r"calibration in .*test\.json cannot be read .*: give --model"):
        find_run(tmp_path)


def test_the_newest_table_is_taken(tmp_path) -> None:
    for name in ("test", "predictions", "test-1"):
        write_run(tmp_path, make_rows(4), name)
        assert find_run(tmp_path).table.stem == name
        time.sleep(0.02)
