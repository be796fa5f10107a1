"""Teacher weights load strictly, or say what is wrong."""

import os
import pickle
import time

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from anomalib_defend.models.components.encoder_weights import load_pretrained, load_weights
from anomalib_defend.nn.vit import create_vit

TINY = "vit_digits_patch8_96"


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return create_vit(TINY, (64, 64))  # 8 x 8 patches


@pytest.fixture
def write(tmp_path, source):
    """Write the source's state, changed, to a safetensors file."""

    def _write(**changes):
        state = {**source.state_dict(), **{key.replace("__", "."): value for key, value in changes.items()}}
        path = tmp_path / "weights.safetensors"
        save_file({key: value.contiguous() for key, value in state.items() if value is not None}, path)
        return path

    return _write


def assert_same_weights(vit, state):
    own = vit.state_dict()
    assert own.keys() == state.keys()
    assert all(value.dtype == torch.float32 for value in own.values())
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_half_precision_with_a_classifier_loads_as_float32(source, tmp_path):
    half = {key: value.half() for key, value in source.state_dict().items()}
    classifier = {"head.weight": torch.zeros(10, 96), "head.bias": torch.zeros(10), "head_dist.weight": torch.ones(3)}
    save_file({**half, **classifier}, tmp_path / "half.safetensors")
    vit = create_vit(TINY, (64, 64))
    load_weights(vit, tmp_path / "half.safetensors")
    assert_same_weights(vit, {key: value.float() for key, value in half.items()})


@pytest.mark.parametrize(("name", "classifier"), [("resnet18", "fc"), ("mobilenetv3_small_050", "classifier")])
def test_the_classifier_of_a_convolutional_encoder_is_dropped(tmp_path, name, classifier):
    whole, encoder = timm.create_model(name), timm.create_model(name, num_classes=0)
    assert f"{classifier}.weight" in whole.state_dict()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    load_weights(encoder, tmp_path / "whole.safetensors")
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_a_pth_file_loads(source, tmp_path, wrap):
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    vit = create_vit(TINY, (64, 64))
    load_weights(vit, str(tmp_path / "weights.pth"))
    assert_same_weights(vit, source.state_dict())


@pytest.mark.parametrize(("name", "size"), [(TINY, (64, 64)), ("vit_small_patch14_reg4_dinov2", (56, 56))])
@pytest.mark.parametrize("patches", [(5, 5), (4, 7)])
def test_the_position_embedding_is_interpolated_as_timm_does(name, size, patches, tmp_path):
    origin = create_vit(name, size)
    save_file(origin.state_dict(), tmp_path / "weights.safetensors")
    vit = create_vit(name, tuple(n * origin.patch_embed.patch_size[0] for n in patches))
    load_weights(vit, tmp_path / "weights.safetensors")
    assert_same_weights(vit, checkpoint_filter_fn(origin.state_dict(), vit))


@pytest.mark.parametrize("patches", [(4, 6), (4, 16), (16, 4)])
def test_an_interpolated_position_stays_where_it_was(source, write, patches):
    # the embedding says where a patch is, from 0 at the top (left) to 1 at the bottom (right): also where the other
    # grid happens to have as many patches as the file's
    position = source.pos_embed.detach().clone()
    grid = position[:, 1:].reshape(8, 8, -1)
    grid[..., 0] = ((torch.arange(8) + 0.5) / 8)[:, None]
    grid[..., 1] = (torch.arange(8) + 0.5) / 8
    vit = create_vit(TINY, (8 * patches[0], 8 * patches[1]))
    load_weights(vit, write(pos_embed=position))
    loaded = vit.pos_embed[0, 1:].reshape(*patches, -1)
    rows, columns = ((torch.arange(n) + 0.5) / n for n in patches)
    torch.testing.assert_close(loaded[..., 0], rows[:, None].expand(patches), atol=0.06, rtol=0)
    torch.testing.assert_close(loaded[..., 1], columns.expand(patches), atol=0.06, rtol=0)
    torch.testing.assert_close(vit.pos_embed[0, 0], position[0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm__weight": None}, r"1 tensors missing \(norm\.weight\)"),
        ({"extra__weight": torch.zeros(3)}, r"1 tensors unexpected \(extra\.weight\)"),
        ({"norm__bias": torch.zeros(7)}, r"another shape \(norm\.bias \(7,\) instead of \(96,\)\)"),
        ({"norm__bias": torch.full((96,), float("nan"))}, r"1 tensors not finite \(norm\.bias\)"),
        ({"cls_token": torch.full((1, 1, 96), float("inf"))}, r"not finite \(cls_token\)"),
        ({"pos_embed": torch.zeros(1, 60, 96)}, r"pos_embed \(1, 60, 96\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(write, changes, message):
    vit = create_vit(TINY, (64, 64))
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(vit, write(**changes))
    assert "weights.safetensors" in str(caught.value)
    assert_same_weights(vit, before)


def test_weights_of_another_encoder_are_refused(tmp_path):
    other = timm.create_model("resnet18")
    torch.save(other.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"tensors missing .* tensors unexpected .*backbone="):
        load_weights(create_vit(TINY, (64, 64)), tmp_path / "resnet18.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors.*no such file"):
        load_weights(create_vit(TINY, (32, 32)), tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder, name the file in it"):
        load_weights(create_vit(TINY, (32, 32)), tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_truncated_file_is_refused(source, tmp_path, suffix, share):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="not a readable"):
        load_weights(create_vit(TINY, (64, 64)), path)


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_pickle_is_refused_and_does_not_run(source, tmp_path, save):
    path, trace = tmp_path / "evil.pth", tmp_path / "executed"
    save({**source.state_dict(), "payload": Payload(str(trace))}, path)
    with pytest.raises(ValueError, match=r"evil\.pth.*tensors-only"):
        load_weights(create_vit(TINY, (64, 64)), path)
    assert not trace.exists()


def test_code_in_the_hubs_cache_does_not_run(source, tmp_path, monkeypatch):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "executed"
    torch.save({**source.state_dict(), "payload": Payload(str(trace))}, path)
    monkeypatch.setattr("anomalib_defend.models.components.encoder_weights._cached_file", lambda *_: str(path))
    name = "deit_tiny_patch16_224"
    vit = create_vit(name, (64, 64))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm's floor would run it"))
    with pytest.raises(ValueError, match=r"timm's weights of .*pytorch_model\.bin is not .*tensors-only"):
        load_pretrained(vit, name)
    assert not trace.exists()


@pytest.mark.parametrize("content", [{"epoch": 3, "weights": {"a": torch.zeros(2)}}, torch.zeros(3), [1, 2]])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        load_weights(create_vit(TINY, (64, 64)), tmp_path / "other.pth")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "does not answer"),  # nobody listens on the discard port
    ],
)
def test_without_network_or_cache_it_fails_at_once_and_names_the_way_out(
    empty_cache, monkeypatch, variable, value, reason
):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(variable, value)
    vit = create_vit("vit_tiny_patch16_224", (32, 32))
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"vit_tiny_patch16_224.*{reason}.*weights=.*pre_trained=False"):
        load_pretrained(vit, "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert time.monotonic() - start < 5


def test_an_encoder_without_pretrained_weights_is_named(empty_cache, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    name = "vit_small_patch16_18x2_224"  # timm has the architecture alone
    with pytest.raises(ConnectionError, match="no pretrained weights"):
        load_pretrained(create_vit(TINY, (32, 32)), name)


def test_the_hubs_cache_is_enough_without_network(empty_cache, monkeypatch):
    name = "test_vit.r160_in1k"  # timm's smallest
    state = timm.create_model(name).state_dict()
    repository = empty_cache / "models--timm--test_vit.r160_in1k"
    for folder in ("refs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    save_file(state, repository / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    vit = create_vit(name, (160, 160))
    load_pretrained(vit, name)
    assert_same_weights(vit, {key: value for key, value in state.items() if not key.startswith("head.")})
