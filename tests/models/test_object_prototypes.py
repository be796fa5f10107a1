"""ObjectPrototypes: what its views find, and where (``test_every_model.py`` has the rest)."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from anomalib_defend import ObjectPrototypes, SemanticVOC
from anomalib_defend.decision.table import read_table
from anomalib_defend.example.encoder import MODEL_NAME, WEIGHTS
from anomalib_defend.example.scenes import compose_scene, compose_split, draw_classes, load_part
from anomalib_defend.models.components.encoder_weights import load_weights
from anomalib_defend.models.object_prototypes.lightning_model import file_size
from anomalib_defend.models.object_prototypes.torch_model import ObjectPrototypesModel
from anomalib_defend.nn.normality import Clusters, NearestNeighbors
from anomalib_defend.nn.views import LAYOUTS, pixels
from anomalib_defend.visualization import visualizer
from encoders import MINIATURE
from measurements.export import F32, engine_scores, openvino_scores

TINY = {"backbone": MODEL_NAME, "pre_trained": False, "image_size": 32}
THREE = 3


def fitted_model(views="whole+centre+corners", head="prototypes", backbone=MODEL_NAME, size=(32, 32)):
    torch.manual_seed(0)
    model = ObjectPrototypesModel(backbone, size, views, head).eval()
    model.normality.fit(model.features(torch.rand(24, 3, *size)))
    return model


def with_views(model, views, boxes=None, head="prototypes"):
    """The same encoder and prototypes, other views."""
    other = ObjectPrototypesModel(MODEL_NAME, (32, 32), views, head).eval()
    other.load_state_dict({**model.state_dict(), "view_boxes": other.view_boxes})
    other.boxes = boxes or other.boxes
    return other


IMAGES = torch.rand(5, 3, 54, 54, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("head", "kind"), [("prototypes", Clusters), ("neighbors", NearestNeighbors)])
def test_one_view_is_the_plain_distance_of_the_encoders_features(head, kind):
    images = torch.rand(6, 3, 32, 32)
    model = fitted_model("whole", head)
    features = normalize(model.encoder(images), dim=-1)
    torch.testing.assert_close(model.encode(images), features)
    assert isinstance(model.normality, kind)
    torch.testing.assert_close(model(images).pred_score, model.normality(features))


def test_images_too_small_for_the_views_are_refused_and_larger_ones_are_not():
    model = fitted_model("whole+corners")
    for action in (model, model.encode):
        action(IMAGES[:, :, :54, :54])
        with pytest.raises(
            ValueError, match=r"\(54, 53\) reach a model .*\(32, 32\) and 5 views, which takes \(54, 54\)"
        ):
            action(IMAGES[:, :, :54, :53])
    with_views(model, "whole")(IMAGES)


def test_a_convolutional_encoder_is_pooled_and_stays_frozen():
    model = fitted_model(backbone="mobilenetv3_small_050", size=(64, 64)).train()  # its features pass a last layer
    before = model.encoder.bn1.running_mean.clone()
    assert model.encode(torch.rand(2, 3, 107, 107)).shape == (2, model.encoder.head_hidden_size)
    assert model(torch.rand(2, 3, 107, 107)).pred_score.shape == (2,)
    assert torch.equal(model.encoder.bn1.running_mean, before)


@pytest.mark.parametrize("head", ["prototypes", "neighbors"])
def test_another_view_never_raises_the_score(head):
    model = fitted_model(head=head)
    scores = {views: with_views(model, views, head=head)(IMAGES).pred_score for views in LAYOUTS}
    for few, many in [("whole", "whole+centre"), ("whole+centre", "whole+centre+corners"), ("whole", "whole+corners")]:
        assert (scores[many] <= scores[few]).all()
    assert (scores["whole+centre+corners"] < scores["whole"]).any()


@given(st.lists(st.floats(0, 1e6, width=32), min_size=2, max_size=7))
def test_another_distance_never_raises_the_score(distances):
    """The whole image's comes first; the others in any order."""
    scores = [ObjectPrototypesModel.scores(torch.tensor([distances[:n]])).min().item() for n in (1, -1, len(distances))]
    assert scores[0] == distances[0]
    assert scores == sorted(scores, reverse=True)
    whole, *parts = distances
    other = ObjectPrototypesModel.scores(torch.tensor([[whole, *parts[::-1]]]))
    assert other.min().item() == scores[-1]


def test_the_whole_image_counts_as_much_as_the_best_view():
    model = fitted_model()
    batch, distances = model(IMAGES), model.distances(IMAGES).tolist()
    for score, heat, (whole, *parts) in zip(batch.pred_score.tolist(), batch.anomaly_map, distances, strict=True):
        assert score == pytest.approx((whole + min(whole, *parts)) / 2, rel=1e-6)
        assert heat.min().item() == score
        assert heat.max().item() <= whole


@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (2, 0, 4, 1, 3), (1, 2, 3, 4, 0)])
def test_the_order_of_the_parts_makes_no_difference(order):
    """The whole image comes first, in every layout: its distance counts in every view's score."""
    model = fitted_model()
    first, *others = model.boxes
    shuffled = with_views(model, "whole+centre+corners", (first, *(others[index] for index in order)))
    for own, other in zip(model(IMAGES), shuffled(IMAGES), strict=True):
        assert own is None or torch.equal(own, other)


def test_memory_does_not_grow_with_the_views():
    model, seen = fitted_model(), []
    model.encoder.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    forward_features = model.encoder.forward_features
    model.encoder.forward_features = lambda images: seen.append(len(images)) or forward_features(images)
    model(IMAGES)
    assert seen == [len(IMAGES)] * 6


# ------------------------------------------------------------------------------------------------ scenes of digits


def as_images(scenes):
    return torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1).float() / 127.5 - 1 for scene in scenes])


@pytest.fixture(scope="module")
def digits():
    """The example's encoder, which has seen digits on scenes of 96 pixels, and distances on scenes of 160."""
    rng = np.random.default_rng(0)
    model = ObjectPrototypesModel(MODEL_NAME, (96, 96), "whole+centre+corners").eval()
    load_weights(model.encoder, WEIGHTS)
    model.normality.fit(model.features(as_images(compose_split("train", 60, THREE, 60, rng))))
    val = load_part("val")
    rules = [{"present": THREE}] * 30 + [{"absent": THREE}] * 30
    scenes = [compose_scene(val, draw_classes(rng, 2, **rule), rng, size=160) for rule in rules]
    return model, scenes, model.distances(as_images(scenes))


def test_the_box_holds_the_pasted_object(digits):
    """Nine tenths of its area, in nine of ten scenes that a part decides."""
    model, scenes, distances = digits
    shares = []
    for scene, best in zip(scenes[:30], model.scores(distances)[:30].argmin(dim=1).tolist(), strict=True):
        if best:  # else the whole image, which holds everything
            left, top, right, bottom = pixels(model.boxes[best], (160, 160))
            x0, y0, x1, y1 = next(item.box for item in scene.objects if item.label == THREE)
            inside = max(0, min(right, x1) - max(left, x0)) * max(0, min(bottom, y1) - max(top, y0))
            shares.append(inside / ((x1 - x0) * (y1 - y0)))
    assert len(shares) >= 15  # the whole scene's digits are smaller than those that the encoder knows
    assert np.mean(np.array(shares) >= 0.9) >= 0.9


def test_views_find_what_the_whole_image_hides(digits):
    model, _, distances = digits
    labels = [0] * 30 + [1] * 30
    scores = model.scores(distances).amin(dim=1)
    assert roc_auc_score(labels, scores) > max(0.95, roc_auc_score(labels, distances[:, 0]))


# ------------------------------------------------------------------------------------------------ runs and checkpoints


@pytest.fixture
def trained(make_data, make_engine):
    def _trained(model=None, **options):
        model = model or ObjectPrototypes(**{**TINY, **options})
        engine = make_engine()
        engine.fit(model, datamodule=make_data())
        return model, engine

    return _trained


def test_images_are_resized_to_what_the_smallest_view_needs(trained):
    assert ObjectPrototypes(**TINY).pre_processor.resize.size == [54, 54]
    assert ObjectPrototypes(**TINY, views="whole").pre_processor.resize.size == [32, 32]
    assert ObjectPrototypes(**{**TINY, "image_size": (32, 40)}).pre_processor.resize.size == [54, 67]


def test_prototypes_are_per_normal_category(trained, make_data, make_engine):
    assert len(trained(num_prototypes=1)[0].model.normality.centers) == 1
    model, data = ObjectPrototypes(**TINY, num_prototypes=1), make_data(category=["dog", "cat"])
    make_engine().fit(model, datamodule=data)
    assert len(data.train_data) >= 8
    assert len(model.model.normality.centers) == 2


def test_batches_tables_and_pictures_name_the_box(trained, make_data, monkeypatch):
    drawn, draw = [], visualizer.draw_picture
    monkeypatch.setattr(visualizer, "draw_picture", lambda image, *args: drawn.append(args[0]) or draw(image, *args))
    model, engine = trained(views="whole+centre+corners")
    data = make_data()
    for run, table in ((engine.test, "test.csv"), (engine.predict, "predictions.csv")):
        drawn.clear()
        batches = run(model, datamodule=data)
        rows = read_table(Path(engine.trainer.default_root_dir) / table)
        assert len(rows) > 1
        assert [finding.box for finding in drawn] == [row.box for row in rows]
        assert all("Box: " in " ".join(finding.caption()) for finding in drawn)
    named = {row.path: row.box for row in rows}
    for batch in batches:
        expected = model.model.distances(batch.image).argmin(dim=1).tolist()
        for path, box, best in zip(batch.image_path, batch.box, expected, strict=True):
            with Image.open(path) as image:
                size = (image.height, image.width)
            assert box == pixels(model.model.boxes[best], size) == named[str(path)]


def test_a_file_that_is_gone_since_it_was_read_has_no_box(tmp_path):
    assert file_size(str(tmp_path / "gone.png")) is None
    Image.new("RGB", (30, 20)).save(tmp_path / "there.png")
    assert file_size(str(tmp_path / "there.png")) == (20, 30)


def test_the_first_view_alone_decides_that_images_are_normal(trained, tmp_path):
    """With the threshold of all views: whatever it calls normal is normal."""
    model, engine = trained(views="whole+centre+corners")
    first = ObjectPrototypes.load_from_checkpoint(engine.best_model_path, views="whole").eval()
    assert first.post_processor.calibration == model.post_processor.calibration
    images = torch.rand(20, 3, 70, 90, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        own, whole = first(images).pred_score, model.eval()(images).pred_score
        raw = model.model.distances(model.pre_processor(images))[:, 0]
        assert torch.equal(first.model(first.pre_processor(images)).pred_score, raw)
    assert (own >= whole).all()
    assert (own > whole).any()
    first.to_torch(tmp_path)
    again = ObjectPrototypes.load_from_checkpoint(engine.best_model_path)
    assert len(again.model.boxes) == 6


def test_views_that_no_threshold_was_set_with_are_refused(trained):
    _, engine = trained(views="whole+centre")
    with pytest.raises(ValueError, match=r"views='whole\+corners' has views that ckpt_path was not trained with"):
        ObjectPrototypes.load_from_checkpoint(engine.best_model_path, views="whole+corners")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": "whole+center"}, r"views='whole\+center' must be one of .* Did you mean"),
        ({"head": "mean"}, "head='mean' must be one of 'prototypes', 'neighbors'"),
        ({"num_prototypes": 0}, "num_prototypes=0 must be at least 1"),
        ({"num_neighbors": 0}, "num_neighbors=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ObjectPrototypes(**{**TINY, **arguments})


@pytest.fixture
def defend_checkpoint(make_model, make_data, make_engine):
    engine, model = make_engine(), make_model(distill_epochs=1)
    engine.fit(model, datamodule=make_data())
    return model, engine.best_model_path


def test_what_was_defend_with_prototypes_gives_its_teacher():
    """As the refusal of such a checkpoint says."""
    old = Path(__file__).parent / "version_0_1" / "defend_prototypes.ckpt"
    content = torch.load(old, weights_only=True)
    assert content["hyper_parameters"]["backbone"] == MINIATURE
    model = ObjectPrototypesModel(MINIATURE, (32, 32))
    load_weights(model.encoder, str(old), MINIATURE)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, content["state_dict"][f"model.teacher.{name}"]), name


def test_bf16_is_near_float32(trained, make_data, make_engine):
    model, _ = trained(views="whole+centre+corners")
    batches = {}
    for precision in ("32", "bf16-mixed"):
        found = make_engine(precision=precision).predict(model, datamodule=make_data())
        batches[precision] = [
            torch.cat([getattr(batch, name) for batch in found]) for name in ("pred_score", "anomaly_map")
        ]
        assert all(box for batch in found for box in batch.box)
    for exact, rounded in zip(*batches.values(), strict=True):
        torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)


def test_weights_are_the_teacher_of_a_defend_checkpoint(trained, defend_checkpoint):
    defend, path = defend_checkpoint
    model, engine = trained(weights=path)
    for name, value in defend.model.teacher.state_dict().items():
        assert torch.equal(model.model.encoder.state_dict()[name], value), name
    Path(path).unlink()
    ObjectPrototypes.load_from_checkpoint(engine.best_model_path)  # holds them


def test_other_weights_in_a_checkpoint_are_refused(trained, defend_checkpoint, tmp_path):
    _, path = defend_checkpoint
    other = {"backbone": "vit_tiny_patch16_224", "image_size": 32}
    with pytest.raises(
        ValueError, match=rf"weights='{re.escape(path)}' holds a teacher of backbone='{MODEL_NAME}', but"
    ):
        trained(weights=path, **other)
    _, engine = trained()
    with pytest.raises(ValueError, match="is a checkpoint of ObjectPrototypes without a teacher: give one of Defend"):
        trained(weights=engine.best_model_path)
    (tmp_path / "part.ckpt").write_bytes(Path(path).read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"weights='.*part\.ckpt' is no checkpoint, or only a part of one"):
        trained(weights=str(tmp_path / "part.ckpt"))


# ------------------------------------------------------------------------------------------------------- exports


@pytest.mark.timeout(1800)
@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("backbone", "file", "size"),
    [
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fp16.safetensors", 224),
        ("tf_efficientnet_lite2.in1k", "tf_efficientnet_lite2.in1k.fp16.safetensors", 260),
    ],
)
def test_exports_of_photographs_are_exact_and_eight_bits_keep_the_order(
    shared, make_engine, tmp_path, backbone, file, size
):
    onnxruntime = pytest.importorskip("onnxruntime")
    shutil.unpack_archive(shared / "data" / "voc2012_animals.zip", tmp_path)
    model = ObjectPrototypes(backbone, weights=str(shared / "weights" / file), image_size=size)
    data = SemanticVOC(tmp_path, category="horse", max_train_images=120, num_workers=0, val_split_ratio=0.15)
    make_engine().fit(model, datamodule=data)
    model.post_processor.enable_normalization = False
    paths = list(data.test_data.samples.sample(60, random_state=0).image_path)
    expected = engine_scores(model, paths)
    exact = openvino_scores(model.to_openvino(tmp_path / "f32"), paths, F32)
    assert np.abs(exact.raw - expected.raw).max() < 1e-5
    assert (exact.novel == expected.novel).all()
    onnx = onnxruntime.InferenceSession(model.to_onnx(tmp_path / "onnx"), providers=["CPUExecutionProvider"])
    images = [read_image(path, as_tensor=True)[None].numpy() for path in paths]
    scores = [onnx.run(["pred_score"], {onnx.get_inputs()[0].name: image})[0].item() for image in images]
    assert np.abs(scores - expected.raw.squeeze()).max() < 1e-5
    eight = model.to_openvino(tmp_path / "int8", compression_type="int8_ptq", datamodule=data)
    assert spearmanr(openvino_scores(eight, paths, {}).raw, expected.raw).statistic > 0.99
