"""What the app says of an image is what the engine says, for a checkpoint and for its exports."""

from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from PIL import Image

from anomalib_defend import ObjectPrototypes
from anomalib_defend.app.judging import Judge, Judged
from anomalib_defend.app.page import MOST_IMAGES, judged
from anomalib_defend.app.view import GONE, view
from anomalib_defend.commands import main
from anomalib_defend.decision import p_value


@pytest.fixture(scope="module")
def judge(trained):
    return Judge(trained / "model.ckpt")


@pytest.mark.parametrize(
    "kind", ["checkpoint", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("openvino", "onnx"))]
)
def test_scores_are_the_engines(trained, images, judge, kind) -> None:
    model = ObjectPrototypes.load_from_checkpoint(trained / "model.ckpt", map_location="cpu").eval()
    if kind != "checkpoint":
        pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime"}[kind])
        found = Engine(logger=False).export(model, kind, export_root=trained)
        judge = Judge(found.parent)
    for path in images[:2]:
        one = judge(path)
        with torch.inference_mode():
            expected = model(torch.as_tensor(read_image(path, as_tensor=True))[None])
        calibration = judge.calibration
        score = expected.pred_score.item()
        assert calibration.image.scaled(one.raw) == pytest.approx(score, abs=1e-5)
        assert one.p_value == pytest.approx(float(p_value(score, calibration)), abs=1e-9)
        np.testing.assert_allclose(calibration.pixel.scaled(one.heat), expected.anomaly_map[0].squeeze(), atol=1e-4)


def test_the_view_follows_the_threshold(judge, images) -> None:
    """Verdicts are those of the model whose threshold was moved; scores move, p-values do not."""
    found = [judge(path) for path in images]
    seen = {}
    for target in (0.05, 0.3, 0.5):
        calibration = judge.calibration.moved(target)
        shown = view(found, calibration)
        novel = [one for one in found if one.raw > calibration.image.threshold]
        assert [row[1] for row in shown.table].count("NOVEL") == len(novel)
        assert f"{len(novel)} of {len(found)} images" in shown.sentence
        assert f"target_fpr={target:g}" in shown.promise
        assert [float(row[2]) for row in shown.table] == sorted((float(row[2]) for row in shown.table), reverse=True)
        seen[target] = len(novel), [row[3] for row in shown.table]
    assert [number for number, _ in seen.values()] == [0, 1, 2]  # the k-th largest of six is the threshold, k 0, 2, 3
    assert len({tuple(p_values) for _, p_values in seen.values()}) == 1
    picture, words = shown.pictures[0]
    assert picture.width > 2 * 200  # image and heat map
    assert words.startswith(shown.table[0][0])


def test_what_is_no_image_gets_a_message(judge, tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "words.txt").write_text("no image")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    names = ["broken.png", "empty.jpg", "words.txt", "deep.png"]
    shown = view(judged(judge, [str(tmp_path / name) for name in names], tmp_path), judge.calibration)
    remarks = {row[0]: row[4] for row in shown.table}
    assert set(remarks) == set(names)
    assert all(remark.startswith("cannot be scored: ") for remark in remarks.values())
    assert "the file is empty" in remarks["empty.jpg"]
    assert "16-bit" in remarks["deep.png"]
    assert shown.sentence == "No image yet. 4 could not be scored: see the table."
    assert not shown.pictures


def test_no_path_outside_of_the_dropped_files(judge, images, tmp_path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(images[0])
    ways = [images[0], inside / ".." / "x.png", inside / "link.png", "/etc/passwd"]
    found = judged(judge, list(map(str, ways)), inside)
    assert len(found) == 4
    assert all("no file that was dropped here" in one.error for one in found)


def test_an_image_is_judged_once(judge, images) -> None:
    before = [Judged(images[0], raw=9.0)]
    first, second = judged(judge, list(map(str, images[:2])), images[0].parent, before)
    assert first is before[0]
    assert second.raw != 9.0


def test_a_verdict_outlives_the_dropped_file(judge, images, tmp_path) -> None:
    """Gradio removes dropped files after an hour; the threshold still moves."""
    dropped = [tmp_path / path.name for path in images[:2]]
    for path, image in zip(dropped, images, strict=False):
        path.write_bytes(image.read_bytes())
    found = judged(judge, list(map(str, dropped)), tmp_path)
    dropped[0].unlink()
    shown = view(found, judge.calibration.moved(0.5))
    assert "of 2 images" in shown.sentence
    assert {row[0]: row[4] for row in shown.table} == {dropped[0].name: GONE, dropped[1].name: ""}
    assert all(row[1] and row[2] and row[3] for row in shown.table)
    assert [words.partition(":")[0] for _, words in shown.pictures] == [dropped[1].name]


def test_no_more_images_than_it_says(judge, images) -> None:
    before = [Judged(images[0].with_name(f"{number}.png"), raw=1.0) for number in range(MOST_IMAGES + 1)]
    assert judged(judge, [str(one.path) for one in before], images[0].parent, before) == before[:MOST_IMAGES]


@pytest.mark.parametrize("rate", [0.0004, 0.05, 0.7])
def test_the_slider_takes_the_models_own_rate(judge, tmp_path, rate) -> None:
    """Gradio refuses to do anything with a slider's value outside of its ends."""
    gradio = pytest.importorskip("gradio", reason="gradio is not installed (the extra app)")
    from anomalib_defend.app.page import build

    page = build(SimpleNamespace(calibration=judge.calibration.moved(rate), map_note=""), tmp_path)
    (slider,) = [block for block in page.blocks.values() if isinstance(block, gradio.Slider)]
    assert slider.value == slider.preprocess(rate) == rate


def test_a_model_that_is_none(tmp_path, capsys) -> None:
    assert main(["app", str(tmp_path / "absent.ckpt")]) == 1
    assert "absent.ckpt does not exist: give a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "70000", "x"])
def test_a_port_that_is_none(tmp_path, capsys, port) -> None:
    with pytest.raises(SystemExit):
        main(["app", str(tmp_path), "--port", port])
    assert "port" in capsys.readouterr().err


def test_the_command_serves_the_page(trained, monkeypatch) -> None:
    """Without waiting for the interruption that ends it."""
    pytest.importorskip("gradio", reason="gradio is not installed (the extra app)")
    from anomalib_defend.app import page

    served, serve = [], page.serve
    monkeypatch.setattr(page, "serve", lambda *arguments: served.append(serve(*arguments, block=False)))
    assert main(["app", str(trained / "model.ckpt")]) == 0
    try:
        with urlopen(served[0].local_url, timeout=20) as answer:  # noqa: S310 - ours
            assert b"anomalib" in answer.read()
    finally:
        served[0].close()
