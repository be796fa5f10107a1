"""Fitymi: generator, fakes that are made once, and the paper's score (``test_every_model.py`` has the rest)."""

import json
import logging
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import Callback
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from anomalib_defend import Fitymi
from anomalib_defend.models.fitymi import fakes as fakes_module
from anomalib_defend.models.fitymi.fakes import FakeCache, fingerprint
from anomalib_defend.models.fitymi.generator import Generator
from anomalib_defend.models.fitymi.torch_model import FitymiModel, center_crop, random_crops, resized_size
from rounding import rounding

TINY = {
    "backbone": "vit_digits_patch8_96",
    "pre_trained": False,
    "image_size": 32,
    "stop_step": 4,  # of 3 in an epoch: it ends within the second one
    "generator_size": 16,
    "generator_channels": (8, 16),
    "sampling_steps": 10,
    "classifier_epochs": 2,
    "classifier_lr": 0.05,
    "seed": 0,
}
NORMAL = 9  # training images


@pytest.fixture
def make():
    return lambda **kwargs: Fitymi(**{**TINY, **kwargs})


@pytest.fixture
def no_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)


@pytest.fixture
def trained(make, make_data, make_engine):
    data, engine, model = make_data(), make_engine(), make()
    engine.fit(model, datamodule=data)
    return engine, model, data


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def learned(model):
    """All but how many steps it took."""
    return {name: value for name, value in state(model).items() if name != "trained_steps"}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name].nan_to_num(), second[name].nan_to_num())]
    assert not different


def caches(tmp_path):
    return sorted(path for path in tmp_path.rglob("fakes/*") if path.is_dir())


# --------------------------------------------------------------------------------------------------------- networks


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = FitymiModel("vit_digits_patch8_96", (32, 32)).eval()
    model.normality.fit(torch.randn(20, 96))
    return model


def test_the_score_is_the_sum_of_two_squared_distances_of_the_cls_feature(network):
    images = torch.randn(4, 3, 37, 37)
    encoder = network.encoder
    cls = encoder.norm(encoder.forward_intermediates(images[..., 2:34, 2:34], norm=False)[0])[:, 0].detach()
    distances, _ = NearestNeighbors(n_neighbors=2).fit(network.normality.memory).kneighbors(cls)
    np.testing.assert_allclose(network(images).pred_score, (distances**2).sum(axis=1), rtol=1e-4)


def test_known_images_have_distance_zero_to_themselves(network):
    images = torch.randn(3, 3, 37, 37)
    network.normality.fit(network.encode(images).repeat(2, 1))
    assert network(images).pred_score.max() < 1e-3


@pytest.mark.parametrize(("size", "resized"), [((224, 224), (256, 256)), ((32, 32), (37, 37)), ((112, 96), (128, 110))])
def test_images_are_resized_to_eight_sevenths_of_the_crop(size, resized):
    assert resized_size(size) == resized


def test_training_crops_are_random_and_mirrored_and_test_crops_central():
    images = torch.arange(37 * 40.0).reshape(1, 1, 37, 40).expand(200, 3, -1, -1)
    crops = random_crops(images, (32, 32))
    assert crops.shape == (200, 3, 32, 32)
    mirrored = crops[:, 0, 0, 0] > crops[:, 0, 0, 1]
    assert 60 < mirrored.sum() < 140
    corner = torch.where(mirrored, crops[:, 0, 0, -1], crops[:, 0, 0, 0]).int()
    assert set((corner // 40).tolist()) == set(range(6))
    assert set((corner % 40).tolist()) == set(range(9))
    assert center_crop(images, (32, 32))[0, 0, 0, 0] == 2 * 40 + 4


def test_normal_is_class_0_and_fake_class_1(network):
    network.classifier.weight.data.zero_()
    network.classifier.bias.data = torch.tensor([9.0, 0.0])
    images = torch.randn(4, 3, 37, 37)
    loss = [network.classification_loss(images, torch.full((4,), label)).item() for label in (0, 1)]
    assert loss == pytest.approx([0, 9], abs=1e-3)


def test_the_first_half_of_the_blocks_is_frozen(network):
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[2] for name in frozen} == {"0", "1", "2"}
    assert all(name.startswith("encoder.blocks.") for name in frozen)


def test_an_encoder_without_cls_token_is_refused():
    with pytest.raises(ValueError, match=r"backbone='vit_pwee_patch16_reg1_gap_256' has no \[CLS\] token"):
        FitymiModel("vit_pwee_patch16_reg1_gap_256", (32, 32))


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Generator(16, (8, 16))


def test_the_loss_is_the_squared_error_of_the_noise(generator):
    images = torch.rand(5, 3, 16, 16)
    torch.manual_seed(1)
    loss = generator.loss(images)
    torch.manual_seed(1)
    noise, steps = torch.randn(5, 3, 16, 16), torch.randint(1000, (5,))
    share = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)[steps].reshape(-1, 1, 1, 1)
    noisy = share.sqrt() * (2 * images - 1) + (1 - share).sqrt() * noise
    torch.testing.assert_close(loss, (generator.unet(noisy, steps).sample - noise).square().mean())


def test_samples_follow_from_number_and_seed_alone(generator):
    whole = generator.sample([0, 1, 2], seed=3, steps=2)
    assert whole.shape == (3, 3, 16, 16)
    assert whole.min() >= 0
    assert whole.max() <= 1
    # the first of two steps divides by the image's share in pure noise; about 20 layers each
    share = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)[-1].sqrt().item()
    atol = rounding(2 * 20, largest=1 / share)
    torch.testing.assert_close(generator.sample([2], seed=3, steps=2)[0], whole[2], atol=atol, rtol=0)
    assert not torch.allclose(generator.sample([2], seed=4, steps=2)[0], whole[2], atol=atol, rtol=0)


def test_samples_are_those_of_the_averaged_weights(generator):
    before = generator.sample([0], seed=0, steps=2)
    with torch.no_grad():
        for parameter in generator.unet.parameters():
            parameter.add_(1)
    changed = state(generator.unet)
    torch.testing.assert_close(generator.sample([0], seed=0, steps=2), before)
    assert_equal(state(generator.unet), changed)
    other = Generator(16, (8, 16))
    other.load_state_dict(generator.state_dict())
    torch.testing.assert_close(other.sample([0], seed=0, steps=2), before)


# --------------------------------------------------------------------------------------------------------- one fit


class Watch(Callback):
    """Records what is trained, and the weights at the stages' borders."""

    def __init__(self):
        self.optimizers, self.rates, self.validated, self.weights = [], [], [], {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.optimizers.append(type(optimizer).__name__)
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.weights.setdefault("start", state(pl_module.model))

    def on_validation_start(self, trainer, pl_module):
        self.validated.append(trainer.current_epoch)

    def on_train_epoch_start(self, trainer, pl_module):
        self.weights[trainer.current_epoch] = state(pl_module.model)


def test_one_fit_runs_all_stages(make, make_data, make_engine, tmp_path):
    watch, data, model = Watch(), make_data(), make()
    engine = make_engine(callbacks=[watch])
    engine.fit(model, datamodule=data)
    assert watch.optimizers == ["Adam"] * 4 + ["SGD"] * 6
    assert watch.rates == [2e-4] * 4 + [0.05] * 6  # a warm-up of a quarter of 4 steps is over at once
    assert watch.validated == [2, 3]
    assert engine.trainer.current_epoch == 4
    assert model.model.normality.memory.shape == (NORMAL, 96)
    assert 0 <= engine.test(model, datamodule=data)[0]["image_AUROC"] <= 1

    start, before, after = watch.weights[0], watch.weights[2], state(model.model)
    kept = {name for name in before if not name.startswith(("normality.", "generator."))}
    assert all(torch.equal(start[name], before[name]) for name in kept)  # the generator's stage leaves it alone
    changed = {name for name in kept if not torch.equal(before[name], after[name])}
    assert not [
        name for name in changed if name.startswith(("encoder.blocks.0", "encoder.blocks.1", "encoder.blocks.2"))
    ]
    assert {"encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj.weight", "classifier.weight"} <= changed
    assert "encoder.blocks.3.mlp.fc1.weight" in changed

    (cache,) = caches(tmp_path)
    images = sorted((cache / "images").iterdir())
    assert len(images) == NORMAL
    assert all(Image.open(path).size == (16, 16) for path in images)
    assert len({path.read_bytes() for path in images}) == NORMAL
    assert Image.open(cache / "fakes.png").width > 8 * 16
    assert json.loads((cache / "settings.json").read_text())["steps"] == 4


def test_the_memory_holds_the_central_crops_of_the_normal_images(trained):
    _, model, data = trained
    model.eval()
    items = [data.train_data[index] for index in range(NORMAL)]
    images = model.pre_processor.transform(torch.stack([item.image for item in items]))
    torch.testing.assert_close(model.model.encode(images), model.model.normality.memory)


@pytest.mark.slow
def test_the_learning_rate_of_the_generator_warms_up(make, make_data, make_engine):
    watch = Watch()
    make_engine(callbacks=[watch]).fit(make(stop_step=12, classifier_epochs=1), datamodule=make_data())
    expected = [2e-4 / 3, 4e-4 / 3, *[2e-4] * 10]
    assert watch.rates[:12] == pytest.approx(expected)


def test_fast_dev_run(make, make_data, make_engine, tmp_path):
    model = make(stop_step=20_000, sampling_steps=1000, classifier_epochs=30)
    make_engine(fast_dev_run=True).fit(model, datamodule=make_data())
    assert model.trained_steps.tolist() == [1, 1]
    assert len(model.model.normality.memory) == 4


@pytest.mark.parametrize("number", [2, 20])
def test_any_number_of_fakes(make, make_data, make_engine, tmp_path, number):
    model = make(num_fakes=number)
    make_engine().fit(model, datamodule=make_data())
    (cache,) = caches(tmp_path)
    assert len(list((cache / "images").iterdir())) == number
    assert model.trained_steps[1] == 6


# ---------------------------------------------------------------------------------------------------------- resuming


def test_a_run_killed_while_it_samples_goes_on_there(make, make_data, make_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(fakes_module, "SAMPLED_AT_ONCE", 4)
    asked, sample = [], Generator.sample

    def dies(self, indices, *args):
        asked.append(list(indices))
        if len(asked) == 2:
            raise KeyError
        return sample(self, indices, *args)

    monkeypatch.setattr(Generator, "sample", dies)
    engine = make_engine()
    with pytest.raises(KeyError):
        engine.fit(make(), datamodule=make_data())
    (part,) = caches(tmp_path)
    assert part.suffix == ".part"
    assert len(list(part.rglob("*.png"))) == 4

    model = make()
    make_engine().fit(model, datamodule=make_data(), ckpt_path=next(tmp_path.rglob("model.ckpt")))
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8]]
    monkeypatch.setattr(Generator, "sample", sample)
    whole = make(fake_cache=str(tmp_path / "elsewhere"))
    make_engine().fit(whole, datamodule=make_data())
    assert_equal(state(model), state(whole))


def test_more_classifier_epochs_can_be_given_to_a_finished_run(trained, make, make_data, make_engine):
    engine, _, _ = trained
    model = make(classifier_epochs=3)
    make_engine().fit(model, datamodule=make_data(), ckpt_path=engine.best_model_path)
    assert model.trained_steps[1] == 9


def test_without_its_fakes_a_run_is_not_resumed(trained, make, make_data, make_engine, tmp_path):
    engine, _, _ = trained
    (cache,) = caches(tmp_path)
    (cache / "images" / "000003.png").unlink()
    with pytest.raises(ValueError, match="The fakes of the run that is resumed are not in"):
        make_engine().fit(make(classifier_epochs=3), datamodule=make_data(), ckpt_path=engine.best_model_path)


# ------------------------------------------------------------------------------------------------------------- fakes


def test_fakes_are_used_again_as_long_as_nothing_that_makes_them_changes(
    trained, make, make_data, make_engine, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "diffusers", None)
        again = make(classifier_epochs=1, classifier_lr=0.1)
        make_engine().fit(again, datamodule=make_data())
        assert again.trained_steps.tolist() == [0, 3]
        assert len(caches(tmp_path)) == 1
        for changes, data in (
            ({"stop_step": 3}, {}),
            ({"seed": 1}, {}),
            ({"sampling_steps": 5}, {}),
            ({"generator_channels": (16, 16)}, {}),
            ({"fid_window": (0, 9)}, {}),
            ({}, {"train_batch_size": 3}),
            ({}, {"max_train_images": 8}),
        ):
            with pytest.raises(ImportError, match="diffusers"):
                make_engine().fit(make(**changes), datamodule=make_data(**data))
    other = make(stop_step=3, classifier_epochs=1)
    make_engine().fit(other, datamodule=make_data())
    assert other.trained_steps[0] == 3
    assert len(caches(tmp_path)) == 2


@pytest.mark.parametrize("changes", [{}, {"fid_window": (0.0, 1e9), "fid_every": 2}], ids=["steps", "window"])
def test_a_fit_that_finds_its_fakes_has_the_bits_of_the_one_that_made_them(
    make, make_data, make_engine, tmp_path, changes
):
    """Its classifier is trained in the epochs with the same numbers: order, crops, dropout and choice of fakes."""
    first, second = make(**changes), make(**changes)
    engine = make_engine()
    engine.fit(first, datamodule=make_data())
    expected = engine.test(first, datamodule=make_data())
    again = make_engine()
    again.fit(second, datamodule=make_data())
    assert first.trained_steps[0] > second.trained_steps[0] == 0
    assert_equal(learned(first), learned(second))
    assert again.trainer.current_epoch == engine.trainer.current_epoch
    assert again.test(second, datamodule=make_data()) == expected


class Killed(Callback):
    """Ends a training in the first step of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise KeyError


def test_a_fit_killed_before_its_classifier_and_started_anew_has_the_same_bits(make, make_data, make_engine, tmp_path):
    whole, model = make(fake_cache=str(tmp_path / "elsewhere")), make()
    make_engine().fit(whole, datamodule=make_data())
    with pytest.raises(KeyError):
        make_engine(callbacks=[Killed(epoch=2)]).fit(make(), datamodule=make_data())
    make_engine().fit(model, datamodule=make_data())
    assert model.trained_steps.tolist() == [0, 6]
    assert_equal(learned(model), learned(whole))


def test_a_resumed_fit_that_found_its_fakes_has_the_same_bits(trained, make, make_data, make_engine, tmp_path):
    _, whole, _ = trained
    with pytest.raises(KeyError):
        make_engine(callbacks=[Killed(epoch=3)]).fit(make(), datamodule=make_data())
    model, newest = make(), max(tmp_path.rglob("model.ckpt"), key=lambda path: path.stat().st_mtime)
    make_engine().fit(model, datamodule=make_data(), ckpt_path=newest)
    assert model.trained_steps.tolist() == [0, 6]
    assert_equal(learned(model), learned(whole))


def test_a_changed_image_changes_the_key(tmp_path):
    path = tmp_path / os.fsdecode(b"St\xfcck.png")
    path.write_bytes(b"one")
    first = fingerprint({"seed": 0}, [str(path)])
    assert fingerprint({"seed": 0}, [str(path)]) == first
    path.write_bytes(b"three")
    assert fingerprint({"seed": 0}, [str(path)]) != first


def test_the_fakes_do_not_depend_on_the_encoder(make, make_data, make_engine, tmp_path):
    for index, size in enumerate((32, 48)):
        model = make(image_size=size, fake_cache=str(tmp_path / str(index)), classifier_epochs=1)
        make_engine().fit(model, datamodule=make_data())
    first, second = (sorted((tmp_path / str(index)).rglob("images/*.png")) for index in (0, 1))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_cache_appears_complete_or_not_at_all(tmp_path):
    cache = FakeCache(tmp_path, "key", 3)
    with pytest.raises(ZeroDivisionError):
        cache.sample(lambda indices: 1 / 0)  # type: ignore[return-value]
    assert not cache.complete
    assert not cache.folder.exists()
    for rank in (1, 0):
        cache.sample(lambda indices: torch.full((len(indices), 3, 8, 8), 127 / 255), rank, 2)
    assert not cache.complete
    cache.finish({})
    assert cache.complete
    assert {Image.open(path).getpixel((0, 0)) for path in cache.paths} == {(127, 127, 127)}
    cache.paths[1].unlink()
    assert not cache.complete
    cache.sample(lambda indices: torch.zeros(len(indices), 3, 8, 8))
    cache.finish({})
    assert cache.complete


@pytest.fixture
def write_images(tmp_path):
    def write(number):
        folder = tmp_path / "own"
        folder.mkdir()
        for index in range(number):
            pixels = np.random.default_rng(index).integers(0, 255, (20 + index, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.{'jpg' if index % 2 else 'png'}")
        return folder

    return write


@pytest.mark.parametrize("number", [1, 13])
def test_fakes_of_ones_own_need_no_generator(make, make_data, make_engine, write_images, no_diffusers, number):
    model, data = make(fake_dir=str(write_images(number))), make_data()
    engine = make_engine()
    engine.fit(model, datamodule=data)
    assert model.trained_steps.tolist() == [0, 6]
    expected = engine.test(model, datamodule=data)
    assert make_engine().test(make(), datamodule=data, ckpt_path=engine.best_model_path) == expected


@pytest.mark.parametrize("part", ["validation", "test"])
def test_no_image_that_judges_is_among_the_fakes(make, make_data, make_engine, write_images, part):
    data, folder = make_data(), write_images(1)
    data.setup()
    shutil.copy({"validation": data.val_data, "test": data.test_data}[part].samples.image_path.iloc[0], folder)
    with pytest.raises(ValueError, match=rf"fake_dir='.*' holds 1 of the {part} images"):
        make_engine().fit(make(fake_dir=str(folder)), datamodule=data)


def test_without_diffusers_everything_but_the_generator_works(trained, make, make_data, make_engine, no_diffusers):
    engine, model, data = trained
    expected = engine.test(model, datamodule=data)
    fresh = Fitymi(backbone="vit_digits_patch8_96")
    assert make_engine().test(fresh, datamodule=data, ckpt_path=engine.best_model_path) == expected
    assert torch.equal(fresh.model.normality.memory, model.model.normality.memory)
    assert len(Fitymi.load_from_checkpoint(engine.best_model_path).model.normality.memory) == NORMAL
    assert not [name for name in fresh.state_dict() if "generator" in name]
    with pytest.raises(ImportError, match=r'pip install "anomalib-defend\[fitymi\]"'):
        make_engine().fit(make(seed=5), datamodule=make_data())


# --------------------------------------------------------------------------------------------------- stopping by FID


@pytest.mark.parametrize(
    ("window", "steps", "warning"),
    [((0.0, 1e9), 2, ""), ((1e8, 1e9), 2, "fell past its window"), ((0.0, 1e-9), 5, "did not reach its window")],
)
def test_the_fid_window_stops_the_generator(make, make_data, make_engine, caplog, window, steps, warning):
    model = make(stop_step=5, fid_window=window, fid_every=2, classifier_epochs=1)
    with caplog.at_level(logging.INFO):
        make_engine().fit(model, datamodule=make_data())
    assert model.trained_steps[0] == steps
    assert caplog.text.count("FID of the generator after") == (steps + 1) // 2
    assert warning in caplog.text
    assert ("its window" in caplog.text) == bool(warning)


def test_the_generator_reads_each_image_once_and_those_of_its_steps_alone(make, make_data, make_engine, monkeypatch):
    read, seen = fakes_module.small_images, []
    monkeypatch.setattr(fakes_module, "small_images", lambda paths, size: seen.extend(paths) or read(paths, size))
    make_engine(fast_dev_run=True).fit(make(), datamodule=make_data())
    assert len(seen) == 4  # one batch of a data set that may be large
    seen.clear()
    make_engine().fit(make(), datamodule=make_data())
    assert len(seen) == len(set(seen)) == NORMAL


def test_the_fid_is_small_for_the_normal_images_themselves(make, make_data, make_engine, monkeypatch):
    found = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            runner = next(callback for callback in trainer.callbacks if type(callback).__name__ == "StageRunner")
            stage = runner.stage
            if found or stage.name != "generator":
                return
            small = stage._small(runner.run.images.paths)
            answers = {"normal": small / 255, "noise": torch.rand(NORMAL, 3, 16, 16), "black": small * 0.0}
            for name, answer in answers.items():
                monkeypatch.setattr(Generator, "sample", lambda self, indices, *args, a=answer: a[indices])
                found[name] = stage._distance(runner.run)

    with monkeypatch.context():
        make_engine(callbacks=[Look()], max_steps=1).fit(make(), datamodule=make_data())
    assert found["normal"] < 1e-3
    assert found["normal"] < found["noise"]
    assert found["normal"] < found["black"]


# ------------------------------------------------------------------------------------------- anomalib, and its export


def test_a_checkpoint_of_the_generators_stage_says_so(make, make_data, make_engine, monkeypatch, tmp_path):
    engine = make_engine(callbacks=[ModelCheckpoint(dirpath=tmp_path / "every", filename="{epoch}", save_top_k=-1)])
    engine.fit(make(), datamodule=make_data())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(RuntimeError, match=r"comes out of stage 1 of 2 \(generator, 3 steps\)"):
        make_engine().test(make(), datamodule=make_data(), ckpt_path=tmp_path / "every" / "epoch=0.ckpt")
    with pytest.raises(ImportError, match="anomalib-defend\\[fitymi\\]"):
        make_engine().fit(make(), datamodule=make_data(), ckpt_path=tmp_path / "every" / "epoch=0.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop_step": 0}, "stop_step=0 must be at least 1"),
        ({"sampling_steps": 1001}, "sampling_steps=1001 must be at least 1 and at most 1000"),
        ({"num_fakes": 0}, "num_fakes=0 must be at least 1"),
        ({"classifier_epochs": 0}, "classifier_epochs=0 must be at least 1"),
        ({"fid_window": (5, 2)}, r"fid_window=\(5, 2\) must be \(low, high\) with 0 <= low < high"),
        ({"generator_channels": ()}, r"generator_channels=\(\) must name multiples of 8"),
        ({"generator_channels": (8, 12)}, r"generator_channels=\(8, 12\) must name multiples of 8"),
        ({"generator_size": 18, "generator_channels": (8, 8, 8)}, "generator_size=18 must be a multiple of 4"),
        ({"backbone": "vit_no_such"}, "backbone='vit_no_such' is not a timm model"),
        ({"target_fpr": 2}, "target_fpr=2 must lie between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_a_limit_of_epochs_is_refused_before_the_first(make, make_data, make_engine):
    with pytest.raises(
        ValueError, match=r"trainer\.max_epochs=2 does not fit stop_step=2 \+ classifier_epochs=2: leave"
    ):
        make_engine(max_epochs=2).fit(make(), datamodule=make_data())


def test_weights_that_are_not_there_are_named(make, make_data, make_engine):
    with pytest.raises(FileNotFoundError, match=r"weights='nowhere\.safetensors': no such file"):
        make_engine().fit(make(weights="nowhere.safetensors"), datamodule=make_data())
