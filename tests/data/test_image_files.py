"""Files as users have them: each gives the right image, or an error that names it and the way out."""

import builtins
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_defend.data import SemanticDataModule
from anomalib_defend.data.protocol import AnnotatedImage, Annotations

COLOUR = (200, 100, 50)
GREY = 124  # Pillow's luma of COLOUR


class Listed(SemanticDataModule):
    """Ten good images, and the file under test among the training images."""

    def read_annotations(self) -> Annotations:
        images = []
        for split in ("train", "test"):
            for category in ("dog", "cat"):
                for index in range(3):
                    path = self.root / f"{split}_{category}{index}.png"
                    Image.new("RGB", (8, 8)).save(path)
                    images.append(AnnotatedImage(str(path), frozenset({category}), split))
        path = next(path for path in self.root.iterdir() if path.name.startswith("file"))
        return Annotations(["cat", "dog"], [*images, AnnotatedImage(str(path), frozenset({"dog"}), "train")])


def read(folder: Path) -> torch.Tensor:
    """The file under test, through the datamodule."""
    datamodule = Listed(root=folder, category="dog", num_workers=0)
    datamodule.setup()
    items = [*datamodule.train_data, *datamodule.val_data]
    return next(item.image for item in items if Path(item.image_path).name.startswith("file"))


def picture(mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.new("RGB", size, COLOUR).convert(mode)


def assert_colour(image: torch.Tensor, colour: tuple[int, ...] = COLOUR, atol: float = 3) -> None:
    expected = torch.tensor(colour, dtype=torch.float32)[:, None, None].expand_as(image)
    torch.testing.assert_close(image * 255, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_formats(tmp_path, suffix):
    picture().save(tmp_path / f"file.{suffix}")
    image = read(tmp_path)
    assert image.shape == (3, 8, 12)
    assert_colour(image)


@pytest.mark.parametrize("mode", ["P", "RGBA", "PA"])
def test_png_modes(tmp_path, mode):
    image = picture("RGBA") if mode == "RGBA" else picture().quantize(4)
    image.save(tmp_path / "file.png", **({"transparency": 0} if mode == "PA" else {}))
    assert_colour(read(tmp_path))


def test_grey_becomes_three_channels(tmp_path):
    picture("L").save(tmp_path / "file.png")
    assert_colour(read(tmp_path), (GREY,) * 3)


def test_black_and_white(tmp_path):
    Image.new("1", (4, 4), 1).save(tmp_path / "file.png")
    assert_colour(read(tmp_path), (255,) * 3)


def test_cmyk_jpeg(tmp_path):
    picture("CMYK").save(tmp_path / "file.jpg")
    assert_colour(read(tmp_path), atol=6)


def test_the_first_frame_of_an_animation(tmp_path):
    picture().save(tmp_path / "file.gif", save_all=True, append_images=[Image.new("RGB", (12, 8))])
    assert_colour(read(tmp_path))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_are_refused(tmp_path, mode):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).convert(mode).save(tmp_path / "file.tif")
    with pytest.raises(OSError, match=r"file\.tif \(anomalib would clip .* convert it to 8 bits"):
        read(tmp_path)


def test_sixteen_bit_png(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "file.png")
    with pytest.raises(OSError, match=r"file\.png \(anomalib would clip .* convert it to 8 bits"):
        read(tmp_path)


def test_a_rotation_is_told(tmp_path, caplog):
    exif = Image.Exif()
    exif[274] = 6
    picture().save(tmp_path / "file.jpg", exif=exif)
    assert read(tmp_path).shape == (3, 8, 12)  # as anomalib reads it everywhere, in predict and in deployment
    assert "1 of 10 images ask for a rotation" in caplog.text
    assert "file.jpg" in caplog.text


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_pillow_applies_the_orientation_of_a_tiff(tmp_path, caplog, compression):
    picture().save(tmp_path / "file.tif", tiffinfo={274: 6}, compression=compression)
    assert read(tmp_path).shape == (3, 12, 8)
    assert "rotation" not in caplog.text


@pytest.mark.parametrize("size", [(1, 1), (10_000, 50), (1, 300)])
def test_extreme_sizes(tmp_path, size):
    picture(size=size).save(tmp_path / "file.png")
    assert read(tmp_path).shape == (3, size[1], size[0])


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    picture(size=(100, 100)).save(tmp_path / "file.png")
    with pytest.raises(OSError, match=r"file\.png \(Image size \(10000 pixels\) exceeds limit"):
        read(tmp_path)


def test_a_directory_is_refused(tmp_path):
    (tmp_path / "file.jpg").mkdir()
    with pytest.raises(OSError, match=r"file\.jpg \(.*Is a directory"):
        read(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    picture().save(tmp_path / "file.png")
    (tmp_path / "file.png").chmod(0)
    if os.geteuid() == 0:  # who may read every file
        opened = builtins.open

        def refuse(file, *args, **kwargs):
            if str(file).endswith("file.png"):
                raise PermissionError(13, "Permission denied")
            return opened(file, *args, **kwargs)

        monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(OSError, match=r"file\.png \(.*Permission denied"):
        read(tmp_path)


def test_a_broken_link_is_missing(tmp_path):
    (tmp_path / "file.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"1 of 10 images are missing from .*: file\.png"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["file é 日本 %s {x}.png", f"file{'x' * 247}.png"])
def test_names(tmp_path, name):
    picture().save(tmp_path / name)
    assert_colour(read(tmp_path))
