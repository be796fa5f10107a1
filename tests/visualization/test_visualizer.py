"""Pictures of a run: one an image, with what the model and its post-processor say of it."""

import inspect
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback
from PIL import Image

import anomalib_defend.models
from anomalib_defend import Defend, SemanticVOC
from anomalib_defend.post_processing import NormalQuantilePostProcessor
from anomalib_defend.visualization import NoveltyVisualizer, picture_name, visualizer
from anomalib_defend.visualization.findings import findings, map_scale, threshold_of
from anomalib_defend.visualization.visualizer import read_reduced

NOTE = "The map shows another quantity."


@pytest.fixture
def post_processor():
    result = NormalQuantilePostProcessor()
    result._image_threshold.fill_(3.0)
    return result


@pytest.fixture
def model(post_processor):
    return SimpleNamespace(post_processor=post_processor, map_note=NOTE)


def make_trainer(root, rank=0):
    return SimpleNamespace(default_root_dir=root, global_rank=rank)


def write_images(folder, names, size=(40, 30)):
    paths = []
    for name in names:
        path = os.path.join(os.fspath(folder), name)  # noqa: PTH118 - names that are no UTF-8
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        Image.new("RGB", size, (len(paths), 90, 90)).save(path)
        paths.append(path)
    return paths


def make_batch(paths=None, number=2, **fields):
    number = number if paths is None else len(paths)
    maps = torch.linspace(0, 1, 16).reshape(4, 4).repeat(number, 1, 1)
    defaults = {"anomaly_map": maps, "pred_mask": maps > 0.5, "pred_label": torch.arange(number) % 2 == 1}
    scores = torch.linspace(0.2, 0.8, number)
    batch = ImageBatch(
        image=torch.rand(number, 3, 8, 8), image_path=paths, **{"pred_score": scores, **defaults, **fields}
    )
    assert len(batch.image) == number
    return batch


def save(batch, model, root, rank=0, index=0, **arguments):
    NoveltyVisualizer(**arguments).on_test_batch_end(make_trainer(root, rank), model, batch, batch, index)
    return batch.picture


def found(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_each_image_has_a_picture_that_the_batch_names(tmp_path, model):
    names = ["dog/day1/0.png", "cat/day1/0.png", "Dog/day1/0.png", "dog/day1/0.jpg", "dog/day2/0.png"]
    paths = write_images(tmp_path / "in", [*names, os.fsdecode(b"dog/Gr\xfcn.png")])
    pictures = save(make_batch(paths), model, tmp_path / "run")
    assert pictures == [f"images/{picture_name(path)}" for path in paths]
    assert len({picture.lower() for picture in pictures}) == len(paths)
    assert found(tmp_path / "run") == set(pictures)
    for picture in pictures:
        with Image.open(tmp_path / "run" / picture) as file:
            assert (file.format, file.mode) == ("PNG", "RGB")


def test_a_saved_picture_is_the_drawn_one(tmp_path, model):
    paths = write_images(tmp_path / "in", ["a.png"])
    batch = make_batch(paths)
    (name,) = save(batch, model, tmp_path / "run")
    (drawn,) = NoveltyVisualizer().visualize(batch, model)
    with Image.open(tmp_path / "run" / name) as file:
        assert np.array_equal(np.asarray(file), np.asarray(drawn))


def test_processes_write_files_of_their_own(tmp_path, model):
    for rank in (0, 1):
        for index in (0, 1):
            named = write_images(tmp_path / "in", [f"{rank}/{index}/0.png", f"{rank}/{index}/1.png"])
            save(make_batch(named), model, tmp_path / "run", rank, index)
            save(make_batch(), model, tmp_path / "run", rank, index)  # images of no file
    assert len(found(tmp_path / "run")) == 16


def test_threads_write_the_same_picture(tmp_path, monkeypatch):
    both, write_bytes = threading.Barrier(2), Path.write_bytes

    def slowly(path, content):
        write_bytes(path, content)
        both.wait(10)

    monkeypatch.setattr(Path, "write_bytes", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(visualizer.save, [Image.new("RGB", (8, 8))] * 2, [tmp_path / "a.png"] * 2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_visualizer_writes_where_the_trainer_says_each_time(tmp_path, model):
    batch, writer = make_batch(write_images(tmp_path, ["a.png"])), NoveltyVisualizer()
    for run in ("first", "second"):
        writer.on_predict_batch_end(make_trainer(tmp_path / run), model, batch, batch, 0)
        assert found(tmp_path / run) == set(batch.picture)


def test_a_run_says_where_its_pictures_are_once(tmp_path, model, caplog):
    batch, writer = make_batch(write_images(tmp_path, ["a.png"])), NoveltyVisualizer()
    trainer = SimpleNamespace(default_root_dir=tmp_path / "run", global_rank=0, is_global_zero=True)
    with caplog.at_level("INFO"):
        writer.teardown(trainer, model, "fit")
        writer.on_test_batch_end(trainer, model, batch, batch, 0)
        for _ in range(2):
            writer.teardown(trainer, model, "test")
    assert caplog.messages == [f"Pictures: {tmp_path / 'run' / 'images'}"]


def test_pictures_of_another_folder_are_named_from_there(tmp_path, model):
    paths = write_images(tmp_path, ["a.png"])
    (name,) = save(make_batch(paths), model, tmp_path / "run", output_dir=tmp_path / "elsewhere")
    assert name == (tmp_path / "elsewhere" / picture_name(paths[0])).as_posix()
    assert not (tmp_path / "run").exists()


def test_a_picture_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    target.write_bytes(b"of an earlier run")
    monkeypatch.setattr(visualizer.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        visualizer.save(Image.new("RGB", (8, 8)), target)
    assert found(tmp_path) == {"a.png"}
    assert target.read_bytes() == b"of an earlier run"


def test_findings_are_those_of_the_batch(model):
    batch = make_batch()
    batch.p_value = torch.tensor([0.9, 0.01])
    batch.box = [None, torch.tensor([1.0, 2, 3, 4])]
    first, second = (finding for _, _, finding in findings(batch, model))
    assert (first.score, first.novel, first.p_value) == pytest.approx((0.2, False, 0.9))
    assert (second.score, second.novel, second.p_value) == pytest.approx((0.8, True, 0.01))
    assert (first.box, second.box) == (None, (1, 2, 3, 4))
    assert first.threshold == 0.5
    assert first.map_note == NOTE
    assert first.heat.tolist() == [[0, 17, 34, 51], [68, 85, 102, 119], [136, 153, 170, 187], [204, 221, 238, 255]]
    assert np.array_equal(first.above, first.heat > 127)
    assert not first.clipped


@pytest.mark.parametrize("box", [None, (float("nan"),) * 4, (0, 0, 0, 0), (5, 5, 2, 9)])
def test_what_encloses_nothing_is_no_box(model, box):
    batch = make_batch(number=1)
    batch.box = [box]
    ((_, _, finding),) = findings(batch, model)
    assert finding.box is None


def test_maps_beyond_the_scale_are_said_to_be(model):
    batch = make_batch(anomaly_map=torch.tensor([[[0.0, 2.0]], [[0.0, float("nan")]]]), pred_mask=None)
    first, second = (finding for _, _, finding in findings(batch, model))
    assert first.clipped
    assert first.heat.tolist() == second.heat.tolist() == [[0, 255]]


def test_without_predictions_there_is_a_picture(model):
    nothing = dict.fromkeys(("anomaly_map", "pred_mask", "pred_label", "pred_score"))
    assert len(NoveltyVisualizer().visualize(make_batch(**nothing), model)) == 2


def test_a_threshold_that_was_never_set_gives_no_verdict():
    without = SimpleNamespace(post_processor=NormalQuantilePostProcessor(), map_note="")
    ((_, _, finding),) = findings(make_batch(number=1), without)
    assert finding.threshold is None
    assert finding.novel is None


@pytest.mark.parametrize(
    ("settings", "threshold"),
    [
        ({}, 0.5),
        ({"image_sensitivity": 0.75}, 0.25),
        ({"enable_normalization": False}, 3.0),
        ({"enable_thresholding": False}, None),
    ],
)
@pytest.mark.parametrize("kind", [NormalQuantilePostProcessor, PostProcessor])
def test_the_threshold_is_in_the_unit_of_the_scores(kind, settings, threshold):
    given = kind(**settings)
    given._image_threshold.fill_(3.0)
    assert threshold_of(given) == threshold
    assert threshold_of(None) is None


def test_a_threshold_that_a_sensitivity_moves_in_other_units_is_not_told():
    given = NormalQuantilePostProcessor(image_sensitivity=0.75, enable_normalization=False)
    given._image_threshold.fill_(3.0)
    assert np.isnan(threshold_of(given))


@pytest.mark.parametrize(
    ("settings", "threshold"),
    [
        ({}, 0.5),
        ({"pixel_sensitivity": 0.75}, 0.25),
        ({"enable_normalization": False}, 0.5),
        ({"enable_thresholding": False}, None),
    ],
)
def test_maps_are_on_one_scale_whatever_the_scores_are(settings, threshold):
    raw = torch.tensor([[[0.0, 2.0], [3.0, 40.0]]])
    normal = torch.tensor([1.0, 2.0, 3.0])
    told = []
    for given in (NormalQuantilePostProcessor(), NormalQuantilePostProcessor(**settings)):
        given.calibrate(normal, normal, normal / 2)
        batch = make_batch(number=1, anomaly_map=raw.clone(), pred_mask=None)
        given.post_process_batch(batch)
        told += [finding for _, _, finding in findings(batch, SimpleNamespace(post_processor=given))]
    plain, changed = told
    assert np.array_equal(plain.heat, changed.heat)
    assert not changed.clipped
    assert changed.map_threshold == threshold
    legend = " ".join(changed.caption())
    assert ("the map's threshold" in legend) == (threshold is not None)
    assert threshold is None or f"{threshold:g} is the map's threshold" in legend


@pytest.mark.parametrize("kind", [NormalQuantilePostProcessor, PostProcessor])
def test_a_map_without_threshold_is_shown_without(kind):
    never_validated, raw = kind(), kind(enable_normalization=False)
    raw._image_threshold.fill_(3.0)
    assert [map_scale(given)[1] for given in (None, never_validated, raw)] == [None, None, None]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_large_file_is_read_smaller_and_as_the_model_sees_it(tmp_path, suffix):
    image = Image.new("RGB", (1200, 800), (10, 200, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated, which no data set of ours follows
    image.save(tmp_path / f"a{suffix}", exif=exif)
    reduced, size = read_reduced(str(tmp_path / f"a{suffix}"), 256)
    assert size == (1200, 800)
    assert reduced.mode == "RGB"
    assert reduced.width > reduced.height
    assert reduced.width >= 313  # a panel's


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_every_mode_are_drawn(tmp_path, model, mode):
    path = str(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    Image.new(mode, (50, 40)).save(path)
    assert len(NoveltyVisualizer().visualize(make_batch([path]), model)) == 1


def test_items_and_numpy_batches_are_drawn_as_inferencers_give_them():
    batch = make_batch()
    pictures = NoveltyVisualizer().visualize(batch)
    assert len(pictures) == 2
    assert [np.asarray(one).tobytes() for one in NoveltyVisualizer().visualize(batch.to_numpy())] == [
        np.asarray(one).tobytes() for one in pictures
    ]
    assert NoveltyVisualizer().visualize(next(iter(batch))) == pictures[0]


def test_a_side_that_shows_nothing_is_refused():
    with pytest.raises(ValueError, match="side=8 is too small"):
        NoveltyVisualizer(side=8)


@pytest.mark.parametrize("name", anomalib_defend.models.__all__)
def test_every_model_has_it_as_default_and_takes_another(name):
    kind = getattr(anomalib_defend.models, name)
    assert type(kind.configure_visualizer()) is NoveltyVisualizer
    assert inspect.signature(kind).parameters["visualizer"].default is True


class Batches(Callback):
    """Keeps the batches, since those of the user come before the model's own callbacks."""

    def __init__(self):
        self.batches = []

    def on_test_batch_end(self, trainer, pl_module, outputs, *args, **kwargs):
        self.batches.append(outputs)


@pytest.mark.parametrize("given", [True, ImageVisualizer()])
def test_a_run_leaves_a_picture_of_each_image(tmp_path, voc, given, monkeypatch):
    monkeypatch.setattr("anomalib_defend.nn.dense_prototypes.HIDDEN_DIM", 32)
    model = Defend(
        "vit_digits_patch8_96", pre_trained=False, image_size=32, dense_epochs=0, distill_epochs=1, seed=0,
        visualizer=given,
    )  # fmt: skip
    data = SemanticVOC(voc, category="dog", train_batch_size=4, eval_batch_size=4, num_workers=0)
    kept = Batches()
    engine = Engine(
        default_root_dir=tmp_path / "results", accelerator="cpu", devices=1, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[kept],
    )  # fmt: skip
    engine.fit(model, datamodule=data)
    engine.test(model, datamodule=data)
    root = Path(engine.trainer.default_root_dir)
    written = {path.relative_to(root).as_posix() for path in (root / "images").rglob("*.*")}
    assert len(written) == len(data.test_data)
    if given is True:
        assert [name for batch in kept.batches for name in batch.picture] == [
            f"images/{picture_name(path)}" for batch in kept.batches for path in batch.image_path
        ]
        assert {name for batch in kept.batches for name in batch.picture} == written
    else:
        assert not any(hasattr(batch, "picture") for batch in kept.batches)
