"""``anomalib-defend threshold`` on checkpoints and exports: told, moved, computed anew."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from jsonargparse import ArgumentParser
from torch import nn

import miniatures
from anomalib_defend import DN2, SemanticFolder
from anomalib_defend.commands.threshold import add_arguments, run
from anomalib_defend.decision.calibration import Calibration, calibration_path
from anomalib_defend.decision.command import threshold
from anomalib_defend.post_processing import NormalQuantilePostProcessor

TINY = {"backbone": "vit_digits_patch8_96", "pre_trained": False, "image_size": 32}


class Scorer(nn.Module):
    """Stands for a model with scores and, if wanted, maps."""

    def __init__(self, maps: bool = True, **kwargs) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.maps = nn.Conv2d(3, 1, 3).requires_grad_(False), maps
        self.options = {"maps": maps, **kwargs}
        self.post_processor = NormalQuantilePostProcessor(0.1, **kwargs)
        scores = torch.rand(50)
        self.post_processor.calibrate(scores, *((scores + 1, scores / 2) if maps else ()))

    def raw(self, images):
        maps = self.convolution(images)
        return InferenceBatch(pred_score=maps.mean((1, 2, 3)), anomaly_map=maps if self.maps else None)

    def forward(self, images):
        return self.post_processor(self.raw(images))


graphs: dict[str, bytes] = {}  # torch's exporter takes seconds for each


def export_onnx(model: nn.Module, path: Path) -> None:
    names = [name for name, value in model(torch.rand(1, 3, 8, 8))._asdict().items() if value is not None]
    dynamic = ({0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")},)
    torch.onnx.export(
        model.eval(), (torch.rand(2, 3, 8, 8),), path, input_names=["input"], output_names=names, dynamo=True,
        opset_version=18, verbose=False, dynamic_shapes=dynamic,
    )  # fmt: skip


def export(model: nn.Module, folder: Path, suffix: str, half: bool = False) -> Path:
    openvino = pytest.importorskip("openvino")
    path, key = folder / "model.onnx", str(model.options)
    if key not in graphs:
        export_onnx(model, path)
        graphs[key] = path.read_bytes()
    path.write_bytes(graphs[key])
    if suffix == ".xml":
        openvino.save_model(openvino.convert_model(path), path.with_suffix(".xml"), compress_to_fp16=half)
        path.unlink()
        path = path.with_suffix(".xml")
    if model.post_processor.enable_normalization:
        model.post_processor.calibration.save(calibration_path(path))
    return path


def outputs(path: Path, images: np.ndarray, hint: str | None = "f32") -> dict[str, np.ndarray]:
    if path.suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return dict(
            zip([item.name for item in session.get_outputs()], session.run(None, {"input": images}), strict=True)
        )
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint} if hint else {})
    return {next(iter(key.get_names())): np.array(value) for key, value in compiled(images).items()}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Normal images that trained nothing, in a folder whose name is not UTF-8."""
    return miniatures.write_folder(tmp_path / os.fsdecode(b"n\xf6rmal"), ["dog"], 12) / "dog"


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".xml", {}),
        (".onnx", {}),
        (".xml", {"maps": False}),
        (".onnx", {"image_sensitivity": 0.7}),
        (".xml", {"maps": False, "enable_thresholding": False}),
    ],
    ids=["maps", "ONNX", "scores", "sensitivity", "no labels"],
)
def test_an_export_with_a_moved_threshold_is_that_of_a_moved_model(tmp_path, suffix, options, capsys) -> None:
    model = Scorer(**options)
    path = export(model, tmp_path, suffix)
    before = path.read_bytes()
    new = threshold(path, target_fpr=0.4)
    assert new == tmp_path / f"model-threshold{suffix}"
    assert path.read_bytes() == before
    model.post_processor.set_target_fpr(0.4)
    batch = np.random.default_rng(0).random((64, 3, 9, 8), dtype=np.float32)
    found, expected = outputs(new, batch), model(torch.from_numpy(batch))._asdict()
    assert found.keys() == {name for name, value in expected.items() if value is not None}
    for name, value in found.items():
        np.testing.assert_allclose(value.astype(float), expected[name].numpy().astype(float), atol=1e-5, err_msg=name)
    assert Calibration.load(calibration_path(new)) == model.post_processor.calibration
    said = capsys.readouterr().out
    assert "target_fpr=0.4, from 50 normal images" in said
    assert f"Written: {new}" in said
    assert "not for another camera" in said
    assert threshold(new) is None  # it can be read again
    assert threshold(new, target_fpr=0.1, output=tmp_path / f"back{suffix}")  # and moved back
    model.post_processor.set_target_fpr(0.1)
    np.testing.assert_allclose(
        outputs(tmp_path / f"back{suffix}", batch)["pred_score"], model(torch.from_numpy(batch)).pred_score, atol=1e-5
    )


@pytest.mark.parametrize(("suffix", "half"), [(".xml", True), (".onnx", False)], ids=["OpenVINO, half", "ONNX"])
def test_an_export_is_calibrated_in_its_own_arithmetic(tmp_path, images, suffix, half) -> None:
    model = Scorer()
    path = export(model, tmp_path, suffix, half)
    calibration_path(path).unlink()  # an older export
    with pytest.raises(FileNotFoundError, match="--calibrate"):
        threshold(path, target_fpr=0.2)
    with pytest.raises(ValueError, match="give --target_fpr"):
        threshold(path, calibrate=images)
    new = threshold(path, target_fpr=0.2, calibrate=images)
    calibration = Calibration.load(calibration_path(new))
    assert calibration.count == 12
    assert "default precision" in calibration.arithmetic
    with torch.inference_mode():
        raw = [model.raw(torch.as_tensor(read_image(file, as_tensor=True))[None]) for file in sorted(images.iterdir())]
    expected = sorted(item.pred_score.item() for item in raw)
    np.testing.assert_allclose(calibration.image.normal_scores, expected, atol=1e-3 if half else 1e-5)
    np.testing.assert_allclose(
        calibration.pixel.normal_scores,
        sorted(item.anomaly_map.max().item() for item in raw),
        atol=2e-3 if half else 1e-5,
    )
    labels = [
        bool(outputs(new, torch.as_tensor(read_image(file, as_tensor=True))[None].numpy(), None)["pred_label"].item())
        for file in sorted(images.iterdir())
    ]
    # floor(13 * 0.2) - 1 of the images themselves lie above; the next one's score, rounded in a batch, is the threshold
    from_low_to_high = np.array(labels)[np.argsort([item.pred_score.item() for item in raw])]
    assert from_low_to_high[-2:].any()
    assert not from_low_to_high[:-2].any()
    hint = "f32" if suffix == ".xml" else None
    again = threshold(new, calibrate=images, hint=hint, output=tmp_path / f"again{suffix}")  # the rate is known now
    anew = Calibration.load(calibration_path(again))
    assert f"{hint or 'default'} precision" in anew.arithmetic
    np.testing.assert_allclose(anew.image.normal_scores, calibration.image.normal_scores, atol=1e-3 if half else 0)


@pytest.mark.slow
def test_an_export_of_8_bits_takes_a_threshold_of_its_own(tmp_path) -> None:
    pytest.importorskip("nncf")
    miniatures.write_folder(tmp_path / "data", ["dog"], 160)
    images = miniatures.write_folder(tmp_path / "new", ["dog"], 30) / "dog"
    data = SemanticFolder(tmp_path / "data", "dog", num_workers=0)
    model = DN2(**{**TINY, "pre_trained": True}, visualizer=False)
    engine = Engine(default_root_dir=tmp_path / "run", accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.fit(model, datamodule=data)
    path = model.to_openvino(tmp_path, compression_type="int8_ptq", datamodule=data)
    assert "FakeQuantize" in path.read_text()
    new = threshold(path, target_fpr=0.2, calibrate=images, hint="f32")
    level = Calibration.load(calibration_path(new)).image
    found = [outputs(new, torch.as_tensor(read_image(file, as_tensor=True))[None].numpy()) for file in images.iterdir()]
    scores = np.sort([each["pred_score"].item() for each in found])
    # 8 bits: two graphs of it are fused in different ways, and a value at the edge of a step may take the next one
    differences = np.abs(scores - level.scaled(level.normal_scores))
    assert np.sort(differences)[-3] <= 1e-3  # all but two
    assert differences.max() <= 5e-3
    novel = sum(bool(each["pred_label"].item()) for each in found)
    assert novel in {5, 6}  # floor(31 * 0.2) - 1 of the images themselves; rounding may add the one at the threshold


def test_a_graph_that_is_not_ours_is_refused(tmp_path) -> None:
    path = export(Scorer(enable_normalization=False), tmp_path, ".xml")
    with pytest.raises(ValueError, match=r"is not scored, .* cannot be moved .*enable_normalization=True"):
        threshold(path, target_fpr=0.2)


def test_a_file_of_another_model_is_noticed(tmp_path) -> None:
    path = export(Scorer(), tmp_path, ".onnx")
    Scorer().post_processor.set_target_fpr(0.4).save(calibration_path(path))
    with pytest.raises(ValueError, match="is of another model"):
        threshold(path, target_fpr=0.2)


def test_what_cannot_be_done_is_said(tmp_path, images) -> None:
    path = export(Scorer(), tmp_path, ".onnx")
    (tmp_path / "taken.onnx").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pt").write_text("")
    (tmp_path / "model.txt").write_text("")
    (images / "broken.png").write_text("no image")
    for error, match, arguments in (
        (FileExistsError, "taken.onnx exists", {"target_fpr": 0.2, "output": tmp_path / "taken.onnx"}),
        (ValueError, "must end with .onnx", {"target_fpr": 0.2, "output": tmp_path / "x.xml"}),
        (ValueError, "target_fpr=1.5", {"target_fpr": 1.5}),
        (ValueError, "give a folder of normal", {"hint": "f32"}),
        (ValueError, "is of OpenVINO", {"hint": "f32", "calibrate": images, "target_fpr": 0.2}),
        (ValueError, r"Cannot read image .*broken.png", {"calibrate": images, "target_fpr": 0.2}),
        (FileNotFoundError, "holds no image", {"calibrate": tmp_path / "empty"}),
        (FileNotFoundError, "is no folder", {"calibrate": tmp_path / "nowhere"}),
        (ValueError, "labels are a part of an export", {"labels": False, "target_fpr": 0.2}),
    ):
        with pytest.raises(error, match=match):
            threshold(path, **arguments)
    assert (tmp_path / "taken.onnx").read_text() == "mine"
    for wrong, error in ((tmp_path / "none.xml", FileNotFoundError), (tmp_path / "model.txt", ValueError)):
        with pytest.raises(error, match="give a checkpoint"):
            threshold(wrong)
    with pytest.raises(ValueError, match=r"model\.pt\) is not scored, .* cannot be moved: give a checkpoint"):
        threshold(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="holds 2 exported models"):
        threshold(tmp_path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A DN2 of 27 images, 13 of them for validation."""
    root = miniatures.write_folder(tmp_path / "data", ["cat", "dog"], 34)
    data = SemanticFolder(root, "dog", num_workers=0, val_split_ratio=0.5)
    engine = Engine(default_root_dir=tmp_path / "run", accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.fit(DN2(**TINY), datamodule=data)
    return Path(engine.best_model_path)


def test_a_checkpoint(checkpoint, tmp_path, images, capsys) -> None:
    old = DN2.load_from_checkpoint(checkpoint)
    assert threshold(checkpoint) is None
    moved = threshold(checkpoint, target_fpr=0.4)
    assert moved == checkpoint.with_name("model-threshold.ckpt")
    model = DN2.load_from_checkpoint(moved)
    assert model.post_processor.calibration == old.post_processor.calibration.moved(0.4)
    assert model.hparams.target_fpr == 0.4
    assert f"anomalib export --model DN2 --ckpt_path {moved}" in capsys.readouterr().out
    for name, value in old.model.state_dict().items():
        assert torch.equal(value, model.model.state_dict()[name])

    anew = threshold(checkpoint, target_fpr=0.25, calibrate=images, output=tmp_path / os.fsdecode(b"\xe4new.ckpt"))
    said = capsys.readouterr().out
    assert r"n\xf6rmal" in said
    assert r"\xe4new.ckpt" in said
    calibration = DN2.load_from_checkpoint(anew).post_processor.calibration
    assert calibration.count == 12
    batch = torch.stack([old.pre_processor.transform(torch.as_tensor(read_image(path, as_tensor=True)))
                         for path in sorted(images.iterdir())])  # fmt: skip
    with torch.inference_mode():
        expected = old.eval().model(batch).pred_score.sort().values
    np.testing.assert_allclose(calibration.image.normal_scores, expected, atol=1e-5)

    silent = DN2.load_from_checkpoint(threshold(checkpoint, labels=False, output=tmp_path / "silent.ckpt"))
    assert not silent.post_processor.enable_thresholding
    assert silent.post_processor.calibration == old.post_processor.calibration


def test_an_old_checkpoint_says_what_is_missing_and_can_be_calibrated(checkpoint, tmp_path, images) -> None:
    content = torch.load(checkpoint, weights_only=False)
    lacking = ("_normal_scores", "_typical")
    content["state_dict"] = {name: value for name, value in content["state_dict"].items() if not name.endswith(lacking)}
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match="no normal validation scores"):
        threshold(tmp_path / "old.ckpt", target_fpr=0.2)
    new = threshold(tmp_path / "old.ckpt", calibrate=images)
    calibration = DN2.load_from_checkpoint(new).post_processor.calibration
    assert calibration.count == 12
    assert calibration.target_fpr == 0.05


def test_the_engine_takes_the_moved_threshold_or_one_for_that_call_alone(checkpoint, tmp_path, images) -> None:
    """As anomalib's command line with ``--model.target_fpr`` or without; what is the default counts as given, too."""
    saved = threshold(checkpoint, target_fpr=0.4, calibrate=images)
    before, known = saved.read_bytes(), DN2.load_from_checkpoint(saved).post_processor.calibration
    assert (known.count, known.target_fpr) == (12, 0.4)
    data = SemanticFolder(tmp_path / "data", "dog", num_workers=0, val_split_ratio=0.5)
    for action, given in (("test", None), ("test", 0.2), ("predict", None), ("predict", 0.05)):
        folder = tmp_path / f"{action} {given}"
        engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1, enable_progress_bar=False)
        getattr(engine, action)(DN2(**TINY, target_fpr=given, visualizer=False), datamodule=data, ckpt_path=saved)
        (table,) = folder.rglob("*.csv")
        expected = known if given is None else known.moved(given)
        assert pd.read_csv(table).threshold.unique() == pytest.approx([expected.image.threshold])
        assert Calibration.from_content(json.loads(table.with_suffix(".json").read_text())["calibration"]) == expected
    assert saved.read_bytes() == before
    assert sorted(tmp_path.rglob("*.ckpt")) == sorted([checkpoint, saved])


def test_the_command_line(tmp_path, capsys) -> None:
    path = export(Scorer(), tmp_path, ".onnx")
    parser = ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([str(path), "--target-fpr", "0.3"])) == 0
    assert Calibration.load(tmp_path / "model-threshold.calibration.json").target_fpr == 0.3
    assert run(parser.parse_args([str(path)])) == 0
    assert "target_fpr=0.1" in capsys.readouterr().out
