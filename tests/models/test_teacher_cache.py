"""The file that holds what the teacher makes of each training image, and its part in a training."""

import os

import pytest
import torch

from anomalib_defend.models.defend import teacher_cache
from anomalib_defend.models.defend.teacher_cache import CacheLayout, TeacherCache, choose_place, fingerprint, reserve
from anomalib_defend.models.defend.torch_model import TeacherOutput

PATHS = [f"{index}.png" for index in range(5)]
CPU = torch.device("cpu")


@pytest.fixture
def make(tmp_path):
    def _make(attention=True, dtype=torch.float16, layers=2):
        layout = CacheLayout(len(PATHS), layers, patches=3, channels=4, attention=attention, dtype=dtype)
        file = tmp_path / "new" / "cache.part"
        reserve(file, layout.bytes)
        return TeacherCache(file, PATHS, layout), file

    return _make


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


def test_what_was_read_is_a_copy(make):
    cache, _ = make()
    cache.write(0, output(5))
    read = cache.read(PATHS, CPU).layers[0]
    before = read.clone()
    cache.write(0, output(5))
    assert torch.equal(read, before)


def test_an_image_that_was_not_there_is_named(make):
    cache, _ = make()
    with pytest.raises(KeyError, match=r"7.png was not among the training images .* teacher_cache=off"):
        cache.read(["0.png", "7.png"], CPU)


def test_a_file_of_another_size_is_refused(make):
    cache, file = make()
    os.truncate(file, cache.layout.bytes - 1)
    with pytest.raises(ValueError, match=r"cache.part does not hold a cache of 5 images x .* remove it"):
        TeacherCache(file, PATHS, cache.layout)


@pytest.mark.parametrize(("attention", "row"), [(True, 2 * 196 * 768 * 5 + 4 * 196), (False, 2 * 196 * 768 * 5)])
def test_the_size_is_that_of_what_is_used(attention, row):
    layout = CacheLayout(64_000, 5, 196, 768, attention)
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
    files = [tmp_path / name for name in ("a.png", "b.png")]
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
