"""The file that holds what the teacher makes of each training image, and its part in a training."""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torchvision.transforms import v2

from anomalib_defend.models.components import teacher_cache, teacher_pass
from anomalib_defend.models.components.teacher_cache import (
    CacheLayout,
    TeacherCache,
    choose_place,
    fingerprint,
    reserve,
)
from anomalib_defend.models.components.teacher_pass import TeacherPass
from anomalib_defend.models.defend.torch_model import DefendModel
from anomalib_defend.nn.distance import TeacherOutput, TeacherShape
from rounding import A_SHARE_OF_ADAMS_STEP, rounding

PATHS = [f"{index}.png" for index in range(5)]
CPU = torch.device("cpu")
EPOCHS = {"dense_epochs": 1, "distill_epochs": 3}
IMAGES = 9  # for training, in 3 batches


@pytest.fixture
def make(tmp_path):
    def _make(attention=True, dtype=torch.float16, layers=2):
        layout = CacheLayout(len(PATHS), TeacherShape(layers, patches=3, channels=4, attention=attention), dtype)
        file = tmp_path / "new" / "cache.part"
        reserve(file, layout.bytes)
        return TeacherCache(file, PATHS, layout), file

    return _make


class Paths(list):
    """A run's images, as far as their cache knows them."""

    def __init__(self):
        super().__init__(PATHS)
        self.paths = PATHS


def output(images, attention=True, layers=2):
    tokens = [torch.randn(images, 3, 4) for _ in range(layers)]
    return TeacherOutput(tokens, torch.rand(images, 3) if attention else None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("attention", "layers"), [(True, 2), (False, 1)])
def test_rows_come_back_in_any_order_rounded_to_the_type(make, attention, layers, dtype):
    cache, _ = make(attention, dtype, layers)
    first, second = output(3, attention, layers), output(2, attention, layers)
    cache.write(3, second)
    cache.write(0, first)
    order = [4, 0, 3, 0]
    read = cache.read([PATHS[row] for row in order], CPU)
    assert len(read.layers) == layers
    for layer, tokens in enumerate(read.layers):
        expected = torch.cat([first.layers[layer], second.layers[layer]])[order]
        assert torch.equal(tokens, expected.to(dtype))
    if attention:
        assert torch.equal(read.attention, torch.cat([first.attention, second.attention])[order])
    else:
        assert read.attention is None


def test_processes_that_map_the_same_file_share_the_rows_even_when_it_has_no_name_any_more(make):
    cache, file = make()
    other = TeacherCache(file, PATHS, cache.layout)
    file.unlink()
    written = output(5)
    cache.write(0, written)
    assert torch.equal(other.read(PATHS, CPU).layers[1], written.layers[1].half())


def test_two_nodes_on_one_machine_have_a_file_each(tmp_path, monkeypatch):
    """As two launches of torchrun with --nnodes 2 on one machine."""
    monkeypatch.setattr(teacher_pass, "RAM", tmp_path)
    monkeypatch.setattr(teacher_pass, "reason_against", lambda *_: "")
    monkeypatch.setattr(teacher_pass.uuid, "uuid4", lambda: SimpleNamespace(hex="0f"))  # the first node's, broadcast
    barrier = threading.Barrier(2, timeout=20)

    def node(rank):
        run = SimpleNamespace(
            images=Paths(),
            local_rank=0,
            node_rank=rank,
            broadcast=lambda value: value,
            barrier=barrier.wait,
            shared_folder=tmp_path,
        )
        keeper = TeacherPass("ram", TeacherShape(2, patches=3, channels=4, attention=True))
        keeper.announce(run, 2)
        assert keeper.open(run, torch.nn.Identity(), [])
        keeper._cache.write(0, outputs[rank])
        barrier.wait()
        return keeper.read(PATHS, CPU)

    outputs = [output(5), output(5)]
    with ThreadPoolExecutor(2) as nodes:
        for found, written in zip(nodes.map(node, range(2)), outputs, strict=True):
            assert torch.equal(found.layers[0], written.layers[0].half())
    assert not list(tmp_path.iterdir())


def test_what_was_read_is_a_copy(make):
    cache, _ = make()
    cache.write(0, output(5))
    read = cache.read(PATHS, CPU).layers[0]
    before = read.clone()
    cache.write(0, output(5))
    assert torch.equal(read, before)


def test_an_image_that_was_not_there_is_named(make):
    cache, _ = make()
    with pytest.raises(ValueError, match=r"7.png was no training image .* teacher_cache=off"):
        cache.read(["0.png", "7.png"], CPU)


def test_a_file_of_another_size_is_refused(make):
    cache, file = make()
    os.truncate(file, cache.layout.bytes - 1)
    with pytest.raises(ValueError, match=r"cache.part does not hold a cache of 5 images x .* remove it"):
        TeacherCache(file, PATHS, cache.layout)


@pytest.mark.parametrize(("attention", "row"), [(True, 2 * 196 * 768 * 5 + 4 * 196), (False, 2 * 196 * 768 * 5)])
def test_the_size_is_that_of_what_is_used(attention, row):
    layout = CacheLayout(64_000, TeacherShape(5, 196, 768, attention), torch.float16)
    assert layout.bytes == 64_000 * row
    assert str(layout) == "64000 images x 1.5 MB (float16) = 96." + ("4" if attention else "3") + " GB"


def test_the_room_is_reserved_before_anything_is_written(tmp_path, monkeypatch):
    file = tmp_path / "cache.part"
    reserve(file, 1 << 20)
    assert file.stat().st_blocks * 512 >= 1 << 20

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"cache of 1.0 MB cannot be made .*No space left.* pass teacher_cache=off"):
        reserve(tmp_path / "other.part", 1 << 20)
    assert not (tmp_path / "other.part").exists()


@pytest.mark.parametrize(
    ("place", "ram", "disk", "expected"),
    [
        ("auto", 400, 0, "ram"),
        ("auto", 399, 200, "disk"),
        ("auto", 399, 199, "off"),
        ("ram", 100, 0, "ram"),
        ("disk", 0, 100, "disk"),
        ("off", 0, 0, "off"),
        ("ram", 99, 1000, r'takes 100 bytes, of which 99 bytes are free in memory .*teacher_cache="auto"'),
        ("disk", 1000, 99, r"takes 100 bytes, of which 99 bytes are free on the disk of .*results"),
    ],
)
def test_the_place_is_one_where_it_fits(tmp_path, monkeypatch, place, ram, disk, expected):
    monkeypatch.setattr(teacher_cache, "free_ram", lambda: ram)
    monkeypatch.setattr(teacher_cache, "free_disk", lambda _folder: disk)
    if expected in {"ram", "disk", "off"}:
        assert choose_place(place, 100, tmp_path / "results") == expected
    else:
        with pytest.raises(ValueError, match=expected):
            choose_place(place, 100, tmp_path / "results")


def test_what_is_free_is_what_the_machine_says(tmp_path, monkeypatch):
    assert 0 < teacher_cache.free_ram() <= 1024**5
    assert teacher_cache.free_disk(tmp_path / "not" / "there") > 0
    monkeypatch.setattr(teacher_cache, "RAM", tmp_path / "not")
    assert teacher_cache.free_ram() == 0


def test_whatever_changes_the_features_changes_the_key(tmp_path):
    files = [tmp_path / os.fsdecode(name) for name in (b"a.png", b"St\xfcck.png")]
    for file in files:
        file.write_bytes(b"123")
        os.utime(file, (1, 1))
    teacher = {"w": torch.zeros(3), "scale": torch.tensor(1.0)}

    def key(teacher=teacher, files=files, how="Resize(224)"):
        return fingerprint(teacher, [str(file) for file in files], how, 1)

    same = key()
    assert key({name: value.clone() for name, value in teacher.items()}) == same
    others = [
        key({**teacher, "w": torch.tensor([0, 0, 1e-30])}),
        key({"v": teacher["w"], "scale": teacher["scale"]}),
        key({**teacher, "w": torch.zeros(3, 1)}),
        key(files=files[::-1]),
        key(files=files[:1]),
        key(how="Resize(112)"),
    ]
    files[0].write_bytes(b"1234")
    os.utime(files[0], (1, 1))
    others.append(key())
    files[0].write_bytes(b"124")
    os.utime(files[0], (2, 2))
    others.append(key())
    assert len({same, *others}) == len(others) + 1


# ------------------------------------------------------------------------------------------------------ in a training


class Record(Callback):
    """Records losses and drawn files, and stops a training like a signal does."""

    def __init__(self, stop_in_epoch=None):
        self.losses, self.names, self.stop_in_epoch = [], [], stop_in_epoch

    def on_train_batch_start(self, trainer, *_args):
        self.names += [file.name for file in teacher_cache.RAM.glob("anomalib-defend-*")]
        if trainer.current_epoch == self.stop_in_epoch:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, pl_module, outputs, *_args):
        self.losses.append(outputs["loss"].item())


@pytest.fixture
def computed(monkeypatch):
    """Numbers of images that the teacher computes for the student's training from now on."""
    counts, teacher_output = [], DefendModel.teacher_output

    def counted(self, images, attend=False):
        if attend:
            counts.append(len(images))
        return teacher_output(self, images, attend)

    monkeypatch.setattr(DefendModel, "teacher_output", counted)
    return counts


@pytest.fixture
def fit(make_model, make_data, make_engine):
    def _fit(place="auto", ckpt_path=None, data=None, trainer=None, stop_in_epoch=None, **options):
        model, record = make_model(**{**EPOCHS, "teacher_cache": place, **options}), Record(stop_in_epoch)
        engine = make_engine(callbacks=[record], **(trainer or {}))
        if stop_in_epoch is None:
            engine.fit(model, datamodule=make_data(**(data or {})), ckpt_path=ckpt_path)
        else:
            with pytest.raises(SystemExit):
                engine.fit(model, datamodule=make_data(**(data or {})), ckpt_path=ckpt_path)
        return model, record

    return _fit


def files(tmp_path):
    return [path.name for path in (tmp_path / "results").rglob("teacher_cache/*")]


def assert_same_weights(first, second, tolerance=0.0):
    expected = second.model.state_dict()
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("place", ["ram", "disk"])
@pytest.mark.parametrize(
    ("num_workers", "options"),
    [pytest.param(2, {}, marks=pytest.mark.slow), (0, {"masking": "none", "distill_layers": 2})],
)
def test_a_float32_cache_changes_nothing_but_the_number_of_teacher_passes(
    fit, computed, monkeypatch, tmp_path, place, num_workers, options
):
    monkeypatch.setattr(teacher_pass, "CACHE_DTYPE", torch.float32)
    data = {"num_workers": num_workers}
    plain, expected = fit("off", data=data, **options)
    without = sum(computed)
    computed.clear()
    model, record = fit(place, data=data, **options)
    if not options:  # guided
        assert without == 3 * IMAGES
        assert computed == [4, 4, 1]
    torch.testing.assert_close(record.losses, expected.losses, rtol=rounding(200), atol=0)  # layers, there and back
    assert_same_weights(model, plain, A_SHARE_OF_ADAMS_STEP * model.hparams.student_lr)
    assert not record.names  # in RAM, it has no name
    assert not files(tmp_path)  # on disk, it is removed at the end


@pytest.mark.slow
def test_half_precision_changes_losses_by_little_and_repeats_bit_for_bit(fit):
    _, plain = fit("off")
    model, record = fit("ram")
    torch.testing.assert_close(record.losses, plain.losses, rtol=1e-4, atol=0)
    assert record.losses != plain.losses
    again, repeated = fit("ram")
    assert repeated.losses == record.losses
    assert_same_weights(again, model)


def test_an_interrupted_run_leaves_its_cache_on_disk_to_the_resumed_one(fit, computed, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    whole, _ = fit("disk")
    computed.clear()
    fit("disk", stop_in_epoch=2)
    assert sum(computed) == IMAGES
    (name,) = files(tmp_path)
    assert name.endswith(".features")
    (ckpt_path,) = Path(tmp_path / "results").glob("**/v1/**/*.ckpt")
    computed.clear()
    caplog.clear()
    model, _ = fit("disk", ckpt_path=ckpt_path)
    assert not computed
    assert f"{name} is complete" in caplog.text
    assert_same_weights(model, whole)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("first", "second"), [({}, {"feature_norm": "none"}), ({}, {"masking": "none"}), ({}, {"attention_block": 1})]
)
def test_a_complete_cache_of_other_settings_is_left_alone(fit, first, second):
    """What it holds is normalised, and laid out, for the first run."""
    expected, _ = fit("ram", dense_epochs=0, **second)
    fit("disk", stop_in_epoch=1, dense_epochs=0, **first)
    model, _ = fit("disk", dense_epochs=0, **second)
    assert_same_weights(model, expected)


def test_two_runs_may_fill_the_same_file(fit, monkeypatch, tmp_path):
    """The first to be ready gives it its name."""
    expected, _ = fit("disk")
    flush = TeacherCache.flush

    def the_other_is_first(self):
        flush(self)
        (part,) = (tmp_path / "results").rglob("*.part")
        part.replace(part.with_suffix(".features"))

    monkeypatch.setattr(TeacherCache, "flush", the_other_is_first)
    model, _ = fit("disk")
    assert_same_weights(model, expected)


@pytest.mark.parametrize("place", ["ram", "disk", "off"])
def test_what_a_resumed_run_computes_anew_is_what_was_stored(fit, tmp_path, place):
    whole, _ = fit("ram")
    fit("ram", stop_in_epoch=3)
    (ckpt_path,) = Path(tmp_path / "results").glob("**/v1/**/*.ckpt")
    saved = torch.load(ckpt_path, weights_only=True)["hyper_parameters"]
    assert "teacher_cache" not in saved  # where there is room is a matter of the machine
    model, _ = fit(place, ckpt_path=ckpt_path)
    assert_same_weights(model, whole, 1e-3 if place == "off" else 0)


def test_a_cache_that_was_being_filled_is_filled_anew(fit, monkeypatch, tmp_path):
    whole, _ = fit("disk")
    write = TeacherCache.write

    def stop(self, start, output):
        write(self, start, output)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(TeacherCache, "write", stop)
        with pytest.raises(SystemExit):
            fit("disk")
    (part,) = (tmp_path / "results").rglob("teacher_cache/*")
    assert part.suffix == ".part"
    part.write_bytes(b"\x7f" * part.stat().st_size)
    model, _ = fit("disk")
    assert_same_weights(model, whole)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"place": "off"}, 'teacher_cache="off"'),
        (
            {"data": {"train_augmentations": v2.Compose([v2.RGB(), v2.RandomHorizontalFlip()])}},
            "augmented by RandomHor",
        ),
        ({"data": {"train_augmentations": v2.Compose([v2.RandomApply([v2.RGB()])])}}, "augmented by RandomApply"),
        ({"distill_epochs": 1}, "the distillation sees the images less than twice"),
        ({"trainer": {"fast_dev_run": True}}, "the distillation sees the images less than twice"),
        ({"trainer": {"limit_train_batches": 1}}, "the distillation sees the images less than twice"),
    ],
)
def test_it_is_off_by_itself_and_says_why(fit, computed, caplog, options, reason):
    caplog.set_level(logging.INFO)
    fit(**{"place": "ram", **options})
    (message,) = [message for message in caplog.messages if message.startswith("Teacher cache: off (")]
    assert reason in message
    assert "filled" not in caplog.text


def test_it_is_off_where_it_does_not_fit(fit, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(teacher_cache, "free_ram", lambda: 10_000)
    monkeypatch.setattr(teacher_cache, "free_disk", lambda _folder: 10_000)
    fit()
    assert "off (9 images x 3.1 kB (float16) = 28.2 kB are too much for what is free)" in caplog.text
    with pytest.raises(ValueError, match=r"teacher_cache='ram' takes 28.2 kB, of which 10.0 kB are free"):
        fit("ram")


def test_augmentations_that_change_nothing_by_chance_do_not_turn_it_off(fit, computed, caplog):
    caplog.set_level(logging.INFO)
    fit(data={"train_augmentations": v2.Compose([v2.Grayscale(3), v2.CenterCrop(24)])})
    assert sum(computed) == IMAGES
    assert "Teacher cache: 9 images x 3.1 kB (float16) = 28.2 kB in memory (/dev/shm)." in caplog.text
    assert caplog.text.index("Teacher cache: 9") < caplog.text.index("Stage 1,")  # up front


def test_half_precision_trainings_use_it(fit, computed):
    _, record = fit(trainer={"precision": "bf16-mixed"})
    assert sum(computed) == IMAGES
    assert all(torch.tensor(record.losses).isfinite())


def test_another_place_is_refused(make_model):
    with pytest.raises(ValueError, match=r"teacher_cache='gpu' must be one of 'auto', 'ram', 'disk', 'off'"):
        make_model(teacher_cache="gpu")
