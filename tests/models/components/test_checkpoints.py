"""Files given as ckpt_path or weights that are not what they should be: refused in a sentence, and no code is run."""

import os
import pickle

import pytest
import torch
from anomalib.cli.cli import AnomalibCLI

import anomalib_defend.models  # noqa: F401 - the bare name, also where the package is not installed
from anomalib_defend import Defend
from anomalib_defend.models.components.checkpoint_io import AtomicCheckpointIO
from anomalib_defend.nn.vit import create_vit


@pytest.fixture
def ckpt(make_model, make_data, make_engine):
    """The checkpoint of a finished training."""
    engine = make_engine()
    engine.fit(make_model(dense_epochs=0, distill_epochs=1), datamodule=make_data())
    return engine.best_model_path


@pytest.fixture
def change(ckpt, tmp_path):
    """Write the checkpoint again, changed by a function."""

    def _change(function):
        checkpoint = torch.load(ckpt, weights_only=True)
        function(checkpoint)
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return _change


@pytest.fixture
def attempts(make_model, make_data, make_engine, tmp_path):
    """Every way to load a checkpoint."""
    return {
        "fit": lambda path: make_engine().fit(make_model(), datamodule=make_data(), ckpt_path=path),
        "test": lambda path: make_engine().test(make_model(), datamodule=make_data(), ckpt_path=path),
        "predict": lambda path: make_engine().predict(make_model(), datamodule=make_data(), ckpt_path=path),
        "export": lambda path: make_engine().export(make_model(), "torch", ckpt_path=path, export_root=tmp_path),
        "load": Defend.load_from_checkpoint,
    }


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "is no checkpoint, or only a part of one"),
        (lambda content: b"text\n", "is no checkpoint, or only a part of one"),
        (lambda content: content[: len(content) // 2], "is no checkpoint, or only a part of one"),
        (lambda content: content[:-1], "is no checkpoint, or only a part of one"),
        (flip_a_bit, "is damaged .the check sum of"),
    ],
)
def test_a_damaged_file_is_named(ckpt, attempts, tmp_path, spoil, message):
    with open(ckpt, "rb") as file:  # noqa: PTH123
        content = file.read()
    path = tmp_path / "spoiled.ckpt"
    path.write_bytes(spoil(content))
    for attempt in attempts.values():
        with pytest.raises(ValueError, match=rf"ckpt_path='\S+/spoiled.ckpt' {message}"):
            attempt(path)


def test_a_missing_file_and_a_folder_are_named(attempts, tmp_path):
    for name in ("fit", "test", "load"):
        with pytest.raises(FileNotFoundError, match=r"ckpt_path='\S+/no.ckpt' does not exist"):
            attempts[name](tmp_path / "no.ckpt")
        with pytest.raises(FileNotFoundError, match=r"is a folder, not a \.ckpt file"):
            attempts[name](tmp_path)


def test_weights_given_as_a_checkpoint_are_named(attempts, tmp_path):
    torch.save(create_vit("vit_digits_patch8_96", (32, 32)).state_dict(), tmp_path / "teacher.pth")
    for name in ("fit", "test", "load"):
        with pytest.raises(ValueError, match=r"teacher.pth' is no checkpoint of a training: .* weights="):
            attempts[name](tmp_path / "teacher.pth")


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("raw", [False, True])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(change, attempts, voc, tmp_path, monkeypatch, raw):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # what is not asked for explicitly is not safe then
    trace = tmp_path / "executed"
    path = change(lambda checkpoint: checkpoint.update(payload=Payload(str(trace))))
    if raw:
        path.write_bytes(pickle.dumps(Payload(str(trace))))
    commands = {
        action: lambda path, action=action: AnomalibCLI([
            action, "--model", "Defend", "--model.backbone", "vit_digits_patch8_96", "--ckpt_path", str(path),
            "--data", "anomalib_defend.SemanticVOC", "--data.root", str(voc), "--data.category", "dog",
            "--data.num_workers", "0", "--default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu",
        ])
        for action in ("fit", "test")
    }  # fmt: skip
    for attempt in {**attempts, **{f"anomalib {name}": command for name, command in commands.items()}}.values():
        with pytest.raises(ValueError, match="is no checkpoint" if raw else "is refused: it holds Python objects"):
            attempt(path)
        assert not trace.exists()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda c: c["hyper_parameters"].pop("mask_ratio"), r"does not fit .* \(it lacks mask_ratio\)"),
        (lambda c: c["state_dict"].pop("model.student.cls_token"), r"other shapes of model.student.cls_token"),
        (lambda c: c["state_dict"].update({"model.new": torch.zeros(1)}), r"other shapes of model.new"),
        (
            lambda c: c["state_dict"].update({"model.student.cls_token": torch.zeros(1, 1, 7)}),
            r"other shapes of model.student.cls_token\); it was written by version 9.9: install that one",
        ),
        (lambda c: c["state_dict"]["model.teacher.cls_token"].fill_(float("nan")), r"NaN .*model.teacher.cls_token"),
        (lambda c: c["state_dict"].pop("model.head.prototypes"), "not a checkpoint of Defend"),
    ],
)
def test_a_checkpoint_of_another_version_or_with_nan_is_refused(change, attempts, function, message):
    def changed(checkpoint):
        checkpoint["anomalib_defend_version"] = "9.9"
        function(checkpoint)

    path = change(changed)
    for name in ("fit", "test", "load"):
        with pytest.raises(ValueError, match=message):
            attempts[name](path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "is not a readable .safetensors file or tensors-only .pth file"),
        (None, "is a folder, name the file in it"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_wrong_weights_are_named_before_the_first_epoch(
    make_model, make_data, make_engine, tmp_path, suffix, content, message
):
    path = tmp_path / f"weights{suffix}"
    path.mkdir() if content is None else path.write_bytes(content)
    model = make_model(weights=str(path))
    with pytest.raises((ValueError, FileNotFoundError), match=rf"weights{suffix}.* {message}"):
        make_engine().fit(model, datamodule=make_data())
    assert model.trained_steps.tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------------------- writing


class Unwritable:
    def __reduce__(self):
        raise RuntimeError("the disk is full\nat some place in C++")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path, io = tmp_path / "new" / "model.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {}, "pytorch-lightning_version": "2.6", "epoch": 3}, path)
    with pytest.raises(OSError, match=r"model.ckpt could not be written \(the disk is full\); one that was there is"):
        io.save_checkpoint({"epoch": 4, "more": Unwritable()}, path)
    assert io.load_checkpoint(path)["epoch"] == 3
    assert [item.name for item in path.parent.iterdir()] == ["model.ckpt"]


def test_a_users_own_way_of_saving_is_kept(make_model, make_data, make_engine):
    class Own(AtomicCheckpointIO):
        saved = 0

        def save_checkpoint(self, *args, **kwargs):
            self.saved += 1
            super().save_checkpoint(*args, **kwargs)

    own = Own()
    make_engine(plugins=[own]).fit(make_model(dense_epochs=0, distill_epochs=1), datamodule=make_data())
    assert own.saved == 1
