"""DN2: exact search, a memory that travels with the model, and the same scores after export."""

import pytest
import torch
from anomalib.deploy import OpenVINOInferencer
from sklearn.neighbors import NearestNeighbors

from anomalib_defend import DN2
from anomalib_defend.models.dn2.torch_model import DN2Model, neighbor_distance
from anomalib_defend.nn.vit import patch_tokens

TINY = {"backbone": "vit_digits_patch8_96", "pre_trained": False, "image_size": 32}


@pytest.mark.parametrize("num_neighbors", [1, 2, 5])
def test_distances_are_those_of_an_exact_search(num_neighbors):
    features, memory = torch.randn(7, 16), torch.randn(40, 16)
    search = NearestNeighbors(n_neighbors=num_neighbors).fit(memory)
    expected = (search.kneighbors(features)[0] ** 2).mean(axis=1)
    torch.testing.assert_close(neighbor_distance(features, memory, num_neighbors), torch.tensor(expected).float())


def test_a_memory_smaller_than_k_is_used_whole():
    features, memory = torch.randn(3, 8), torch.randn(1, 8)
    torch.testing.assert_close(neighbor_distance(features, memory, 2), (features - memory).square().sum(dim=1))


def test_a_known_image_has_distance_zero():
    memory = torch.randn(5, 8)
    distances = neighbor_distance(memory, memory, 1)
    assert (distances >= 0).all()
    assert distances.max() < 1e-5


@pytest.mark.parametrize("normalize", [True, False])
def test_features_are_the_encoders(normalize):
    images = torch.randn(2, 3, 32, 32)
    cls = DN2Model("vit_digits_patch8_96", (32, 32), normalize=normalize).eval()
    mean = DN2Model("vit_digits_patch8_96", (32, 32), "mean_patch", normalize=normalize).eval()
    mean.load_state_dict(cls.state_dict())
    for model, features in ((cls, cls.encoder(images)), (mean, patch_tokens(mean.encoder, images)[-1].mean(dim=1))):
        expected = torch.nn.functional.normalize(features, dim=-1) if normalize else features
        torch.testing.assert_close(model.encode(images), expected)


def test_a_convolutional_encoder_stays_frozen():
    model = DN2Model("resnet18", (64, 64)).train()
    before = model.encoder.bn1.running_mean.clone()
    features = model.encode(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 512)
    assert torch.equal(model.encoder.bn1.running_mean, before)
    with pytest.raises(ValueError, match="feature='mean_patch' needs an encoder with patch tokens; backbone="):
        DN2Model("resnet18", (64, 64), "mean_patch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_neighbors": 0}, "num_neighbors=0 must be at least 1"),
        ({"backbone": "vit_no_such"}, "backbone='vit_no_such' is not a timm model"),
        ({"weights": "nowhere.safetensors"}, r"weights='nowhere\.safetensors': no such file"),
    ],
)
def test_wrong_arguments_are_named(make_data, make_engine, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_engine().fit(DN2(**{**TINY, **arguments}), datamodule=make_data())


@pytest.fixture
def trained(make_data, make_engine):
    data, engine, model = make_data(), make_engine(), DN2(**TINY, feature="mean_patch", num_neighbors=3)
    engine.fit(model, datamodule=data)
    return engine, model, data


def test_training_fills_the_memory_once(trained, make_engine):
    engine, model, data = trained
    assert model.model.memory.shape == (len(data.train_data), 96)
    make_engine().fit(model, datamodule=data)
    assert model.model.memory.shape == (len(data.train_data), 96)
    assert engine.trainer.current_epoch == 1


def test_a_checkpoint_needs_no_argument(trained, make_engine):
    engine, model, data = trained
    expected = engine.test(model, datamodule=data)
    fresh = DN2(pre_trained=False, backbone="vit_digits_patch8_96")
    assert make_engine().test(fresh, datamodule=data, ckpt_path=engine.best_model_path) == expected
    assert fresh.hparams.num_neighbors == fresh.model.num_neighbors == 3
    assert torch.equal(fresh.model.memory, model.model.memory)


def test_without_memory_it_is_refused(make_data, make_engine, tmp_path):
    for action in ("test", "predict"):
        with pytest.raises(RuntimeError, match=f"Cannot {action}: this DN2 has no memory"):
            getattr(make_engine(), action)(DN2(**TINY), datamodule=make_data())
    with pytest.raises(RuntimeError, match="Cannot export: this DN2 has no memory"):
        make_engine().export(DN2(**TINY), "torch", export_root=tmp_path)


def test_a_checkpoint_of_another_model_is_refused(trained, make_model, make_engine):
    _, _, data = trained
    engine = make_engine()
    engine.fit(make_model(dense_epochs=0, distill_epochs=1), datamodule=data)
    with pytest.raises(ValueError, match="not a checkpoint of DN2"):
        make_engine().test(DN2(**TINY), datamodule=data, ckpt_path=engine.best_model_path)


def test_export_has_the_memory_inside(trained, tmp_path):
    engine, model, data = trained
    path = engine.export(model, "openvino", export_root=tmp_path)
    inferencer = OpenVINOInferencer(path, config={"INFERENCE_PRECISION_HINT": "f32"})
    for item in [data.test_data[index] for index in range(3)]:
        model.eval()
        expected = model(item.image[None])
        prediction = inferencer.predict(item.image_path)
        assert prediction.pred_score.item() == pytest.approx(expected.pred_score.item(), abs=1e-4)
        assert bool(prediction.pred_label) == bool(expected.pred_label)
