"""What every model of this package holds to; a new one joins by a line in `every_model.py`."""

import copy
import inspect
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import InferenceBatch
from anomalib.models import get_model, list_models
from anomalib.post_processing import PostProcessor
from anomalib.utils.path import create_versioned_dir
from calls import CALLS
from every_model import (
    ROWS,
    SMALL_NETWORKS,
    At,
    Row,
    arguments_of,
    checkpoints,
    command_line,
    differing,
    has_own_threshold,
    make_data,
    make_engine,
    state_of,
    stop,
    train,
    with_other_arguments,
)
from lightning.pytorch import Callback
from torchvision.transforms import v2

import anomalib_defend
from anomalib_defend.decision import Calibration, calibration_path, p_value
from anomalib_defend.decision.table import read_table
from anomalib_defend.models.components.checkpoints import MODEL_KEY
from anomalib_defend.models.components.normal_images import NormalImages
from anomalib_defend.post_processing import NormalQuantilePostProcessor
from forked import run, run_ranks, start, wait
from rounding import rounding

OLD = Path(__file__).parent / "version_0_1"


SAME = rounding(170)  # of scaled scores: two products of a resize of 32 to 128 terms, and some ten layers
BF16 = 0.03  # numbers of 8 bits in a few layers that are not trained; docs/measurements.md has trained ones


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for place, name, value in SMALL_NETWORKS:
            patch.setattr(place, name, value)
        yield


def rows(*, slow: Callable[[Row], bool]) -> list[Any]:
    """Every model, some of them marked ``slow``."""
    return [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if slow(row) else []) for row in ROWS]


@pytest.fixture(scope="module", params=rows(slow=lambda row: bool(row.variant)))
def row(request) -> Row:
    return request.param


in_processes = pytest.mark.parametrize(
    "row", rows(slow=lambda row: row.name not in {"Defend", "DN2"}), indirect=True, scope="module"
)


@pytest.fixture
def one_thread():
    if torch.get_num_threads() > 1:
        pytest.skip("the other processes have one thread, which sums in another order")


# what the base does alike for all: for four kinds of training in `make test`, for the others in `.ci/run`
of_the_base = pytest.mark.parametrize(
    "row",
    rows(slow=lambda row: row.name not in {"Defend", "DN2", "ARNet", "MeanFeature"}),
    indirect=True,
    scope="module",
)
# torch's exporter takes 10 to 25 s; the graphs of both are that of DN2
in_runtimes = pytest.mark.parametrize(
    "row", rows(slow=lambda row: bool(row.variant) or row.name in {"MSAD", "PANDA"}), indirect=True, scope="module"
)


class Fitted(NamedTuple):
    """What a finished training has left; nothing changes it."""

    row: Row
    folder: Path
    ckpt: Path
    state: dict[str, torch.Tensor]
    epochs: int
    steps: int
    trains: bool
    images: torch.Tensor
    predictions: InferenceBatch

    @property
    def data(self):
        return make_data(self.folder / "images")

    def load(self):
        return self.row.model.load_from_checkpoint(self.ckpt)


@pytest.fixture(scope="module")
def fitted(row, tmp_path_factory) -> Fitted:
    folder = tmp_path_factory.mktemp(row.name)
    model, engine = row.build(), make_engine(folder / "runs")
    engine.fit(model, datamodule=make_data(folder / "images"))
    state, ckpt, trainer = state_of(model), Path(engine.best_model_path), engine.trainer
    images = torch.rand(3, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    trains = any(stage.trains for stage in model.stages())
    return Fitted(
        row, folder, ckpt, state, trainer.current_epoch, trainer.global_step, trains, images, predict(model, images)
    )


@pytest.fixture(scope="module")
def used(fitted):
    """A model that has been fitted before, and is again and again."""
    model = fitted.row.build(chance=1)
    make_engine(fitted.folder / "used").fit(model, datamodule=fitted.data)
    return model, state_of(model)


@pytest.fixture(scope="module")
def exported(fitted):
    """A model after its exports, and these: torch, ONNX and OpenVINO."""
    pytest.importorskip("openvino")
    model, folder = fitted.load(), fitted.folder / "exports"
    with pytest.MonkeyPatch.context() as patch:  # one conversion serves both
        to_onnx = type(model).to_onnx

        def keep(self, *args, **kwargs):
            path = to_onnx(self, *args, **kwargs)
            shutil.copytree(path.parent, folder / "onnx")  # the weights lie beside it
            return path

        patch.setattr(type(model), "to_onnx", keep)
        xml = model.to_openvino(folder)
    return model, model.to_torch(folder), folder / "onnx" / "model.onnx", xml


def predict(model, images) -> InferenceBatch:
    with torch.inference_mode():
        return model.eval()(images)


def assert_same(predictions, expected) -> None:
    for name, value in expected._asdict().items():
        assert (value is None) == (getattr(predictions, name) is None), name
        assert value is None or torch.equal(value, getattr(predictions, name)), name


# ------------------------------------------------------------------------------------------- names and checkpoints


def test_bare_name(row):
    if not row.public:
        pytest.skip("no public model")
    name = row.model.__name__
    assert name in anomalib_defend.__all__
    assert name in list_models("pascal")
    assert type(get_model(name, **row.arguments)) is row.model


def test_a_checkpoint_brings_all_arguments(fitted, tmp_path):
    assert_same(predict(fitted.load(), fitted.images), fitted.predictions)
    default = fitted.row.model()
    make_engine(tmp_path).test(default, datamodule=fitted.data, ckpt_path=fitted.ckpt, verbose=False)
    assert_same(predict(default, fitted.images), fitted.predictions)
    (table,) = tmp_path.rglob("v0/test.csv")
    assert create_versioned_dir(table.parents[1]).name == "v1"  # a training finds no folder where it wants a link


def test_predictions_are_complete(fitted):
    """Scores, labels and maps, of a batch as of each image."""
    predictions = fitted.predictions
    assert predictions.pred_score.shape == predictions.pred_label.shape == (3,)
    assert predictions.pred_score.isfinite().all()
    assert predictions.pred_label.dtype == torch.bool
    assert (predictions.anomaly_map is not None) == fitted.row.model.has_map
    if predictions.anomaly_map is not None:
        assert predictions.anomaly_map.shape[:2] == (3, 1)
        assert predictions.anomaly_map.isfinite().all()
    model = fitted.load()
    alone = torch.cat([predict(model, image).pred_score for image in fitted.images.split(1)])
    torch.testing.assert_close(alone, predictions.pred_score, rtol=0, atol=SAME)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("the-code-ran",)


@pytest.fixture
def bad_checkpoints(fitted, tmp_path):
    """Files that are no checkpoint of this model, and what is said of each."""
    content = bytearray(fitted.ckpt.read_bytes())
    middle = len(content) // 2
    (truncated := tmp_path / "truncated.ckpt").write_bytes(content[:middle])
    content[middle : middle + 1024] = bytes(byte ^ 255 for byte in content[middle : middle + 1024])
    (damaged := tmp_path / "damaged.ckpt").write_bytes(content)
    checkpoint = torch.load(fitted.ckpt, weights_only=True)
    torch.save({**checkpoint, "evil": Evil()}, malicious := tmp_path / "malicious.ckpt")
    (tmp_path / "pickled.ckpt").write_bytes(pickle.dumps(Evil()))
    state = {name: value * torch.nan for name, value in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": state}, not_finite := tmp_path / "not_finite.ckpt")
    name = fitted.row.model.__name__
    torch.save({**checkpoint, MODEL_KEY: "Another"}, foreign := tmp_path / "foreign.ckpt")
    of_0_1 = [file for file in sorted(OLD.glob("*.ckpt")) if not file.name.startswith(name.lower())]
    assert of_0_1
    return {
        tmp_path / "absent.ckpt": (FileNotFoundError, "does not exist"),
        truncated: (ValueError, "only a part of one"),
        damaged: (ValueError, "is damaged"),
        malicious: (ValueError, "holds Python objects"),
        tmp_path / "pickled.ckpt": (ValueError, "is no checkpoint"),
        not_finite: (ValueError, "hold NaN or infinity"),
        foreign: (ValueError, f"not a checkpoint of {name}, but of Another"),
        **dict.fromkeys(of_0_1, (ValueError, f"not a checkpoint of {name}|does not fit anomalib-defend")),
    }


@of_the_base
def test_bad_checkpoints_are_refused(fitted, bad_checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, (error, message) in bad_checkpoints.items():
        with pytest.raises(error, match=message):
            fitted.row.model.load_from_checkpoint(path)
        for action in ("test", "fit"):
            model = fitted.row.build()
            with pytest.raises(error, match=message):
                getattr(make_engine(tmp_path), action)(model, datamodule=fitted.data, ckpt_path=path)
            assert not model.trained_steps.any()
    assert not (tmp_path / "the-code-ran").exists()


@pytest.mark.parametrize(("name", "scores"), json.loads((OLD / "scores.json").read_text()).items())
def test_checkpoints_of_version_0_1(name, scores, tmp_path):
    row, path = next(row for row in ROWS if row.model.__name__.lower() == name), OLD / f"{name}.ckpt"
    model = row.model.load_from_checkpoint(path)
    images = torch.rand(4, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(scores)
    torch.testing.assert_close(predict(model, images).pred_score, expected, rtol=1e-4, atol=1e-5)
    make_data(tmp_path / "images")
    with pytest.raises(ValueError, match=r"written by version 0\.1\.0: it can be tested, but"):
        make_engine(tmp_path).fit(row.build(), datamodule=make_data(tmp_path / "images"), ckpt_path=path)


# ------------------------------------------------------------------------------------------------ the same training


class Start(Callback):
    """Takes the data's seed away, and looks at a part of the model when its training begins."""

    def __init__(self, part: str | None) -> None:
        self.part, self.state = part, {}

    def setup(self, trainer, pl_module, stage) -> None:
        trainer.datamodule.seed = None

    def on_train_start(self, trainer, pl_module) -> None:
        if self.part is not None:
            self.state = state_of(getattr(pl_module.model, self.part))
        stop(pl_module)


def test_what_happens_before_the_first_step(fitted, tmp_path, caplog):
    """A seeded model points at data without a seed, and an encoder has the weights of the user's file."""
    trained = fitted.load()
    part, arguments, weights = trained.pretrained_part, {}, {}
    if part is not None:
        weights = {name: value + 1 for name, value in state_of(getattr(trained.model, part)).items()}
        torch.save(weights, tmp_path / "weights.pth")
        arguments = {"weights": str(tmp_path / "weights.pth")}
    start = Start(part)
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="stopped by the test"):
        make_engine(tmp_path, callbacks=[start]).fit(fitted.row.build(**arguments), datamodule=fitted.data)
    assert ("give the datamodule a seed, too" in caplog.text) == fitted.row.seeded
    assert not differing(start.state, weights)


def test_same_seed_same_bits(fitted, used):
    assert not differing(fitted.state, used[1])


@pytest.mark.parametrize("between", CALLS, ids=lambda between: between.__name__)
def test_nothing_between_two_fits_changes_the_second(fitted, used, between, tmp_path):
    model, _ = used
    between(model, tmp_path, fitted.data)
    make_engine(tmp_path).fit(model, datamodule=fitted.data)
    assert not differing(fitted.state, state_of(model))


def test_a_training_begins_with_the_models_own_arguments(fitted, tmp_path):
    """Whatever was tested, and wherever the threshold was moved to."""
    model, other = fitted.row.build(chance=1), with_other_arguments(fitted.ckpt, tmp_path / "other.ckpt")
    own = arguments_of(model)
    make_engine(tmp_path / "test").test(model, datamodule=fitted.data, ckpt_path=other, verbose=False)
    model.set_target_fpr(0.8)
    assert arguments_of(model) != own
    make_engine(tmp_path).fit(model, datamodule=fitted.data)
    assert arguments_of(model) == own
    assert not differing(fitted.state, state_of(model))


def test_a_fresh_model_in_evaluation_mode_trains_the_same(fitted, tmp_path):
    model = fitted.row.build(chance=1).eval()
    make_engine(tmp_path).fit(model, datamodule=fitted.data)
    assert not differing(fitted.state, state_of(model))


def test_an_interrupted_training_goes_on_to_the_same_bits(fitted, tmp_path):
    if fitted.epochs == 1:
        pytest.skip("one epoch leaves nothing to go on with: see interrupted_fit")
    for epoch in range(1, fitted.epochs):
        folder = tmp_path / str(epoch)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            make_engine(folder, callbacks=[At(epoch, stop)]).fit(fitted.row.build(chance=1), datamodule=fitted.data)
        last = checkpoints(folder)[-1]
        model = fitted.row.build(chance=2)
        make_engine(folder).fit(model, datamodule=fitted.data, ckpt_path=last)
        assert not differing(fitted.state, state_of(model)), f"interrupted in epoch {epoch}"


class Black(v2.Transform):
    """An augmentation that leaves nothing of an image."""

    def transform(self, inpt, params):
        return torch.zeros_like(inpt)


@contextmanager
def recorded_passes(recorded):
    """Record the images of all passes over the normal ones."""
    batches = NormalImages.batches

    def record(self, *args, **kwargs):
        for rows, batch in batches(self, *args, **kwargs):
            recorded.append((rows, batch.image.clone()))
            yield rows, batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NormalImages, "batches", record)
        yield


def test_the_pass_over_the_normal_images_is_without_augmentations(fitted, tmp_path):
    passes = {}
    for name, augmentations in (("plain", None), ("augmented", Black())):
        passes[name] = []
        model = fitted.row.build()
        data = make_data(fitted.folder / "images", train_augmentations=augmentations)
        with recorded_passes(passes[name]):
            make_engine(tmp_path / name).fit(model, datamodule=data)
    if not passes["augmented"]:
        pytest.skip("its training data are not looked at beside the training")
    if not fitted.trains:  # nothing is trained on what is augmented
        assert not differing(fitted.state, state_of(model))
    for (rows, images), (expected_rows, expected) in zip(passes["augmented"], passes["plain"], strict=False):
        assert rows == expected_rows
        torch.testing.assert_close(images, expected, rtol=0, atol=2 / 255)


# ------------------------------------------------------------------------------------------- unusual trainings


@of_the_base
def test_the_last_finished_epoch_is_on_disk(fitted, tmp_path):
    """Whatever the trainer is told; and no checkpoint has the threshold of other weights."""
    best = partial(ModelCheckpoint, monitor="val_score", mode="max", save_top_k=1)
    for name, options in {
        "every second epoch validated": {"check_val_every_n_epoch": 2},
        "no epoch validated": {"check_val_every_n_epoch": 5},
        "no validation": {"limit_val_batches": 0},
        "validation within an epoch": {"val_check_interval": 0.5},
        "the best": {"callbacks": [best(dirpath=tmp_path / "the best" / "own")]},
        "weights alone": {"callbacks": [best(dirpath=tmp_path / "weights alone" / "own", save_weights_only=True)]},
        "a limit of steps": {"max_steps": max(1, fitted.steps - 1)},
        "steps": {"callbacks": [ModelCheckpoint(tmp_path / "steps" / "own", every_n_train_steps=1, save_top_k=-1)]},
    }.items():
        model = fitted.row.build()
        make_engine(tmp_path / name, **options).fit(model, datamodule=fitted.data)
        saved = [torch.load(path, weights_only=True) for path in checkpoints(tmp_path / name)]
        complete = [checkpoint["state_dict"] for checkpoint in saved if "optimizer_states" in checkpoint]
        assert any(not differing(state_of(model), state) for state in complete), name
        assert has_own_threshold(model, tmp_path, fitted.data) == (name != "no validation"), name
        told = torch.load(model.checkpoint_file, weights_only=True)["state_dict"]
        assert not differing(state_of(model), told), name
    for path in checkpoints(tmp_path / "steps"):
        step = fitted.row.model.load_from_checkpoint(path)
        assert not (has_own_threshold(step, tmp_path, fitted.data) and step.untrained), path


def test_validation_images_choose_nothing_but_the_threshold(fitted, tmp_path, caplog):
    """Without them there is none, and all else is the same bits: no epoch, no layout and no block comes from them."""
    model, again = fitted.row.build(), fitted.load()
    for each in (model, again):
        make_engine(tmp_path / str(id(each)), limit_val_batches=0).fit(each, datamodule=fitted.data)
        assert "so there is no threshold: scores have no label, and exports are refused" in caplog.text
        caplog.clear()
    names = differing(fitted.state, state_of(model))
    assert "post_processor._image_threshold" in names
    assert all(name.startswith("post_processor.") for name in names)
    assert not differing(state_of(model), state_of(again))  # nothing is left of the threshold that was loaded

    assert predict(model, fitted.images).pred_label is None
    export = partial(make_engine(tmp_path).export, model, "openvino")
    for to in (model.to_torch, model.to_onnx, model.to_openvino, export):
        with pytest.raises(RuntimeError, match="Cannot export: no normal image was validated with these weights"):
            to(tmp_path / "exports")


def test_a_rate_that_nothing_would_use_is_refused(row):
    if "target_fpr" not in inspect.signature(row.model).parameters:
        pytest.skip("takes none")
    for other in (False, PostProcessor(), NormalQuantilePostProcessor()):
        with pytest.raises(ValueError, match=r"target_fpr=0\.1 is an argument of the default post-processor"):
            row.build(target_fpr=0.1, post_processor=other)


@of_the_base
def test_without_post_processor_there_are_scores_alone(fitted, tmp_path):
    if "post_processor" not in inspect.signature(fitted.row.model).parameters:
        pytest.skip("takes none")
    model, engine = fitted.row.build(post_processor=False), make_engine(tmp_path)
    (metrics,) = engine.train(model, datamodule=fitted.data)
    assert 0 <= metrics["image_AUROC"] <= 1
    assert "image_F1Score" not in metrics
    rows = read_table(next(tmp_path.rglob("test.csv")))
    assert rows
    assert all(row.score is not None and row.label is None for row in rows)


def test_fast_dev_run(fitted, tmp_path):
    model, engine = fitted.row.build(), make_engine(tmp_path, fast_dev_run=True)
    engine.fit(model, datamodule=fitted.data)
    assert not checkpoints(tmp_path)
    assert predict(model, fitted.images).pred_score.shape == (3,)


def test_batches_of_one(fitted, tmp_path):
    data = make_data(fitted.folder / "images", train_batch_size=1, eval_batch_size=1)
    model, engine = fitted.row.build(), make_engine(tmp_path)
    engine.fit(model, datamodule=data)
    (metrics,) = engine.test(model, datamodule=data, verbose=False)
    assert 0 <= metrics["image_AUROC"] <= 1


def spoil_weights(model) -> None:
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.fill_(torch.nan)


def spoil_loss(model) -> None:
    stage = model._runner.stage
    step = stage.step
    stage.step = lambda *args: (result := step(*args))._replace(loss=result.loss * torch.nan)


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_loss], ids=["weights", "loss"])
def test_nan_stops_a_training_and_spoils_no_checkpoint(fitted, spoil, tmp_path):
    if spoil is spoil_loss and not fitted.trains:
        pytest.skip("no loss")
    before = {}

    def spoil_and_look(model):
        before.update({path: path.read_bytes() for path in checkpoints(tmp_path)})
        spoil(model)

    engine = make_engine(tmp_path, callbacks=[At(fitted.epochs - 1, spoil_and_look)])
    with pytest.raises((FloatingPointError, ValueError), match=r"[Nn]a[Nn]|not finite"):
        engine.fit(fitted.row.build(), datamodule=fitted.data)
    assert len(before) >= (fitted.epochs > 1)
    assert {path: path.read_bytes() for path in checkpoints(tmp_path)} == before


def test_an_untrained_model_is_refused(fitted, tmp_path):
    model = fitted.row.build()
    with pytest.raises(RuntimeError, match=r"Cannot score images: this .* has not been trained"):
        predict(model, fitted.images)
    for action in ("validate", "test", "predict"):
        with pytest.raises(RuntimeError, match=f"Cannot {action}: this .* has not been trained"):
            getattr(make_engine(tmp_path), action)(model, datamodule=fitted.data)
    for export in (model.to_torch, model.to_onnx, model.to_openvino):
        with pytest.raises(RuntimeError, match=r"Cannot export: this .* has not been trained"):
            export(tmp_path / "exports")


# ------------------------------------------------------------------------------------------------------- exports

RUNTIMES = """
import sys

sys.modules["torch"] = None  # an import of it is an error
import numpy as np, onnxruntime, openvino

onnx, xml, images, out = sys.argv[1:]
images = np.load(images)
images, long = images["images"], images["long"]
session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
names, feed = [output.name for output in session.get_outputs()], session.get_inputs()[0].name
def compile(**config):
    compiled = openvino.Core().compile_model(xml, "CPU", config)
    bits = compiled.get_property("INFERENCE_PRECISION_HINT").bitwidth
    return bits, lambda batch: {output.get_any_name(): value for output, value in compiled(batch).items()}

_, exact = compile(INFERENCE_PRECISION_HINT="f32")
bits, default = compile()
onnx_runtime = lambda batch: dict(zip(names, session.run(names, {feed: batch})))
runtimes = {"onnx": onnx_runtime, "openvino": exact, "default": default}
results = {"bits": bits}
for runtime, run in runtimes.items():
    for how, batches in {"together": [images], "alone": np.split(images, len(images))}.items():
        outputs = [{name: np.array(value) for name, value in run(batch).items()} for batch in batches]
        for name in outputs[0]:
            results[f"{runtime} {how} {name}"] = np.concatenate([np.atleast_1d(output[name]) for output in outputs])
    for way, image in {"wide": long, "high": long.swapaxes(2, 3)}.items():
        results.update({f"{runtime} {way} {name}": np.array(value) for name, value in run(image).items()})
np.savez(out, **results)
"""
LONG = torch.rand(1, 3, 50, 10_000, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def in_other_runtimes(fitted, exported):
    """What ONNX Runtime and OpenVINO say, in a process without torch."""
    pytest.importorskip("onnxruntime")
    _, _, onnx, xml = exported
    images, results = fitted.folder / "images.npz", fitted.folder / "results.npz"
    np.savez(images, images=fitted.images.numpy(), long=LONG.numpy())
    subprocess.run([sys.executable, "-c", RUNTIMES, onnx, xml, images, results], check=True)
    return dict(np.load(results))


@in_runtimes
def test_exports_give_the_engines_predictions_of_a_long_image(fitted, in_other_runtimes):
    """50 x 10,000 pixels, in either direction; `test_exported_resize.py` has all sides, of the resize alone."""
    for way, image in {"wide": LONG, "high": LONG.mT}.items():
        score = predict(fitted.load(), image).pred_score.item()
        for runtime in ("onnx", "openvino"):
            found = in_other_runtimes[f"{runtime} {way} pred_score"].item()
            assert found == pytest.approx(score, abs=SAME), f"{runtime}, {way}"


@in_runtimes
def test_exports_give_the_engines_predictions(fitted, exported, in_other_runtimes):
    """In a batch and alone."""
    _, torch_file, _, xml = exported
    results, expected = in_other_runtimes, fitted.predictions
    scores, labels = expected.pred_score.numpy(), expected.pred_label.numpy()
    clear = np.abs(scores - 0.5) > 1e-4
    calibration = Calibration.load(calibration_path(xml))
    assert calibration == fitted.load().post_processor.calibration  # the checkpoint's
    known = calibration.image.scaled(calibration.image.normal_scores)
    apart = (np.abs(scores[:, None] - known) > 1e-4).all(axis=1)
    for what in ("onnx together", "onnx alone", "openvino together", "openvino alone"):
        np.testing.assert_allclose(results[f"{what} pred_score"].reshape(-1), scores, rtol=0, atol=SAME, err_msg=what)
        assert (results[f"{what} pred_label"].reshape(-1).astype(bool) == labels)[clear].all(), what
        p_values = p_value(results[f"{what} pred_score"].reshape(-1), calibration)
        assert (p_values == p_value(scores, calibration))[apart].all(), what
        has_map = fitted.row.model.has_map and fitted.row.exports_map
        assert (f"{what} anomaly_map" in results) == has_map, what
        if has_map:
            maps = results[f"{what} anomaly_map"].reshape(expected.anomaly_map.shape)
            np.testing.assert_allclose(maps, expected.anomaly_map.numpy(), rtol=0, atol=SAME, err_msg=what)
    assert_same(predict(torch.load(torch_file, weights_only=False)["model"], fitted.images), expected)
    # what the other images of a batch change: nothing but the order of sums, or what docs/measurements.md says of bf16
    for runtime, exact in (("onnx", True), ("openvino", True), ("default", results["bits"] == 32)):
        together, alone = (results[f"{runtime} {how} pred_score"].reshape(-1) for how in ("together", "alone"))
        np.testing.assert_allclose(together, alone, rtol=0, atol=rounding(24) if exact else BF16, err_msg=runtime)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (1000, 1000), (1, 1)], ids=str)
@in_runtimes
def test_no_whole_number_of_an_export_needs_more_than_32_bits(exported, shape):
    """OpenVINO's CPU plugin computes int64 as int32; they are sums of powers of either side, largest at its end."""
    pytest.importorskip("onnxruntime")
    from integers import largest_integer, outputs

    _, _, onnx, _ = exported
    images = np.random.default_rng(0).random((1, 3, *shape), dtype=np.float32)
    found = outputs(onnx, images)
    assert np.isfinite(found["pred_score"]).all()
    largest = largest_integer(found)
    assert max(shape) <= largest < 2**31
    if shape == (1000, 1000):  # there is no product of both
        assert largest < 1000 * 1000


@in_runtimes
def test_an_exported_model_trains_as_a_fresh_one(fitted, exported, tmp_path):
    model = exported[0]
    make_engine(tmp_path).fit(model, datamodule=fitted.data)
    assert not differing(fitted.state, state_of(model))


def test_an_export_has_the_threshold_that_was_asked_for_beside_the_checkpoint(fitted, tmp_path):
    """anomalib's command builds the model that its options say, drops it, and loads another from the checkpoint."""
    if "post_processor" not in inspect.signature(fitted.row.model).parameters:
        pytest.skip("takes no post-processor")
    asked = fitted.row.build()
    asked.post_processor = NormalQuantilePostProcessor(target_fpr=0.4)  # as --model.target_fpr makes it
    expected = fitted.load().post_processor.calibration.moved(0.4)
    file = make_engine(tmp_path).export(asked, "torch", tmp_path, ckpt_path=fitted.ckpt)
    assert Calibration.load(calibration_path(file)) == expected
    assert torch.load(file, weights_only=False)["model"].post_processor.calibration == expected
    assert asked.post_processor.calibration is None  # it was copied
    file = make_engine(tmp_path).export(fitted.row.build(), "torch", tmp_path, ckpt_path=fitted.ckpt)
    assert Calibration.load(calibration_path(file)) == fitted.load().post_processor.calibration


# ----------------------------------------------------------------------------------------- processes of their own


@pytest.mark.usefixtures("one_thread")
@in_processes
def test_a_killed_training_goes_on_to_the_same_bits(fitted, tmp_path):
    epoch = fitted.epochs - 1
    assert wait(start(partial(train, kill_in=epoch), fitted.row.name, tmp_path)) == -signal.SIGKILL
    last = checkpoints(tmp_path)[-1:]
    assert len(last) == (fitted.epochs > 1)
    run(partial(train, ckpt_path=last[0] if last else None), fitted.row.name, tmp_path)
    assert not differing(fitted.state, torch.load(tmp_path / "rank0.pt", weights_only=True))


def table(path: Path) -> list[dict[str, Any]]:
    """What a test has written of each image: path below the data, labels, numbers, and the box of the best view."""
    names = ("raw_score", "score", "p_value", "threshold", "label", "true_label")
    return [
        {
            "image": "/".join(Path(row.path).parts[-2:]),
            "box": str(row.box),
            **{name: getattr(row, name) for name in names},
        }
        for row in read_table(path)
    ]


BEFORE_THE_FIRST_STEP = {"model.center.center", "model.value_range"}  # statistics of weights that one process has, too


@pytest.mark.usefixtures("one_thread")
@in_processes
def test_two_processes_agree(fitted, tmp_path):
    make_data(tmp_path / "images")
    in_ranks = partial(train, devices=2, strategy="ddp_find_unused_parameters_true")
    run_ranks(2, in_ranks, fitted.row.name, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not differing(first, second)
    assert first["trained_steps"].all()
    if not fitted.trains:  # nothing but a pass over the normal images: as in one process
        for name, value in fitted.state.items():
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    for name in BEFORE_THE_FIRST_STEP & fitted.state.keys():
        torch.testing.assert_close(first[name], fitted.state[name], rtol=1e-4, atol=1e-5, msg=name)
    model = fitted.row.model.load_from_checkpoint(checkpoints(tmp_path)[-1]).eval()
    (metrics,) = make_engine(tmp_path / "alone").test(model, datamodule=fitted.data, verbose=False)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"metrics{rank}.pt") == pytest.approx(metrics)
    (together,), (alone,) = ((tmp_path / runs).rglob("test.csv") for runs in ("runs", "alone"))
    assert table(together) == [pytest.approx(row) for row in table(alone)]
    if hasattr(model.model, "encode"):  # what all processes have seen of the normal images, seen by one
        images = fitted.data
        images.setup()
        inputs = torch.cat([model.pre_processor(item.image[None]) for item in images.train_data])
        expected = copy.deepcopy(model.model.normality)
        expected.fit(model.model.encode(inputs))
        torch.testing.assert_close(state_of(model.model.normality), state_of(expected), rtol=1e-4, atol=1e-5)


@in_processes
def test_command_line(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "images")
    model = fitted.row.model
    name = model.__name__ if fitted.row.public else f"{model.__module__}.{model.__name__}"
    arguments = [
        item for key, value in fitted.row.arguments.items()
        for item in (f"--model.{key}", value if isinstance(value, str) else json.dumps(value))
    ]  # fmt: skip
    data = ["--data", "SemanticFolder", "--data.root", "images", "--data.category", "cat", "--data.num_workers", "0"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    run(command_line, "train", "--model", name, *arguments, *data, "--data.train_batch_size", "4", *trainer)
    (ckpt,) = checkpoints(tmp_path)
    run(command_line, "export", "--model", name, "--ckpt_path", ckpt, "--export_type", "torch")
    (file,) = tmp_path.rglob("model.pt")
    loaded = torch.load(file, weights_only=False)["model"]
    assert_same(predict(loaded, fitted.images), predict(model.load_from_checkpoint(ckpt), fitted.images))
