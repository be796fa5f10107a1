"""``Defend(score="prototypes")``: the image score is the frozen teacher's, the map the student's."""

import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from torchvision.transforms import v2

from anomalib_defend import Defend
from anomalib_defend.nn.normality import Clusters

EPOCHS = {"dense_epochs": 1, "distill_epochs": 2, "score": "prototypes"}


@pytest.fixture
def trained(make_model, make_data, make_engine):
    def _trained(ckpt_path=None, data=(), **options):
        model, datamodule, engine = make_model(**{**EPOCHS, **options}), make_data(**dict(data)), make_engine()
        engine.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        return model, datamodule, engine

    return _trained


def prototypes_of(model):
    return {name: value for name, value in model.state_dict().items() if "normality" in name}


def test_the_score_is_the_distance_of_the_tuned_teachers_cls(trained):
    model, data, _ = trained()
    paths = data.train_data.samples.image_path
    images = torch.stack([model.pre_processor.transform(data.train_data[index].image) for index in range(len(paths))])
    teacher = model.eval().model.teacher
    with torch.no_grad():
        features = teacher.forward_head(teacher.forward_features(images), pre_logits=True)
    expected = Clusters(96, 5)
    expected.fit(features)
    assert prototypes_of(model)["model.normality.centers"].shape == expected.centers.shape
    torch.testing.assert_close(model.model(images).pred_score, expected(features), rtol=1e-3, atol=1e-3)


def test_the_map_is_that_of_the_distance(trained, make_model):
    model, *_ = trained()
    other = make_model(**{**EPOCHS, "score": "distance", "num_prototypes": 2})
    images = torch.rand(2, 3, 32, 32)
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "normality" not in k})
    assert torch.equal(model.eval().model(images).anomaly_map, other.eval().model(images).anomaly_map)


@pytest.mark.parametrize("options", [{"teacher_cache": "off"}, {"teacher_cache": "disk"}])
def test_the_cache_makes_no_difference(trained, options):
    expected = prototypes_of(trained(teacher_cache="ram")[0])
    for name, value in prototypes_of(trained(**options)[0]).items():
        assert torch.equal(value, expected[name]), name


def test_augmentations_are_left_out(trained):
    """Chance would decide what is normal."""
    plain, *_ = trained(dense_epochs=0)
    flipped, *_ = trained(dense_epochs=0, data={"train_augmentations": v2.RandomVerticalFlip(p=1.0)})
    for name, value in prototypes_of(flipped).items():
        assert torch.equal(value, prototypes_of(plain)[name]), name


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_resumed_run_ends_the_same_and_a_checkpoint_brings_them(
    trained, make_model, make_data, make_engine, tmp_path, epoch
):
    keep = ModelCheckpoint(dirpath=tmp_path / "every", filename="{epoch}", save_top_k=-1)
    whole = make_model(**EPOCHS)
    make_engine(callbacks=[keep]).fit(whole, datamodule=make_data())
    resumed, *_ = trained(ckpt_path=tmp_path / "every" / f"epoch={epoch}.ckpt")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    loaded = Defend.load_from_checkpoint(tmp_path / "every" / "epoch=2.ckpt")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.eval().model(images).pred_score, whole.eval().model(images).pred_score)
