"""The examples of docs/pictures.md: ``python -m measurements.picture_examples [--to docs]``.

``pictures.png``: trains configs/quickstart.yaml (minutes on two cores) and shows the pictures of the first test scene
with the normal digit and of the first without it, whatever their verdicts are. ``picture_shapes.png``: the same two
scenes in other shapes, with a box (``ObjectPrototypes``) and without heat map (``DN2``).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from anomalib.engine import Engine
from PIL import Image

from anomalib_defend import DN2, Defend, ObjectPrototypes, PredictFolder, SemanticVOC
from anomalib_defend.example.scenes import write_voc
from anomalib_defend.visualization import NoveltyVisualizer, picture_name

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
SIDE, SMALL_SIDE, GAP, COLOURS = 192, 128, 8, 255  # small files


def read(model: Any, data: Any, folder: Path, paths: Sequence[Path]) -> list[Image.Image]:
    """Test, or predict where there is nothing to test, and read the pictures of some images."""
    engine = Engine(default_root_dir=folder / "results", accelerator="cpu", devices=1)
    if isinstance(data, PredictFolder):
        engine.predict(model, datamodule=data)
    else:
        engine.test(model, datamodule=data)
    images = Path(engine.trainer.default_root_dir) / "images"
    return [Image.open(images / picture_name(path)).convert("RGB") for path in paths]


def trained(model: Any, data: Any, folder: Path) -> Any:
    """The model, after its training."""
    Engine(default_root_dir=folder / "results", accelerator="cpu", devices=1).fit(model, datamodule=data)
    return model


def write_shapes(normal: Path, novel: Path, folder: Path) -> list[Path]:
    """Write a portrait (the normal scene above the other), a landscape (the normal scene last), and a tiny image."""
    normal_scene, novel_scene = (Image.open(path).convert("RGB") for path in (normal, novel))
    width, height = normal_scene.size
    portrait, landscape = Image.new("RGB", (width, 3 * height)), Image.new("RGB", (3 * width, height))
    for index, one in enumerate((normal_scene, novel_scene, novel_scene)):
        portrait.paste(one, (0, index * height))
        landscape.paste(one, ((2 - index) * width, 0))
    folder.mkdir()
    paths = [folder / f"{name}.png" for name in ("portrait", "landscape", "tiny")]
    for image, path in zip((portrait, landscape, normal_scene.resize((32, 32))), paths, strict=True):
        image.save(path)
    return paths


def save_sheet(rows: Sequence[Sequence[Image.Image]], target: Path) -> None:
    """Save pictures in rows, in few colours."""
    sizes = [(sum(one.width + GAP for one in row) - GAP, max(one.height for one in row)) for row in rows]
    size = (max(width for width, _ in sizes), sum(height + GAP for _, height in sizes) - GAP)
    sheet, top = Image.new("RGB", size, (128, 128, 128)), 0
    for row, (_, height) in zip(rows, sizes, strict=True):
        left = 0
        for one in row:
            sheet.paste(one, (left, top))
            left += one.width + GAP
        top += height + GAP
    palette = sheet.quantize(COLOURS)
    sheet.quantize(palette=palette).save(target, optimize=True)  # the second time mixes colours, which hides steps
    print(f"{target}: {target.stat().st_size} bytes")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the examples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs", help="folder")
    target = parser.parse_args(argv).to
    with tempfile.TemporaryDirectory() as scratch:
        folder, options = Path(scratch), CONFIG["model"]["init_args"]
        category = CONFIG["data"]["init_args"]["category"]
        data = SemanticVOC(write_voc(folder, normal=category), category=category, num_workers=0)
        model = trained(Defend(**options, visualizer=NoveltyVisualizer(SIDE)), data, folder)
        samples = data.test_data.samples
        normal, novel = (Path(samples[samples.label_index == label].image_path.iloc[0]) for label in (0, 1))
        save_sheet([read(model, data, folder, [normal, novel])], target / "pictures.png")
        shapes = write_shapes(normal, novel, folder / "shapes")
        portrait, landscape, tiny, alone = (
            picture
            for kind, paths in ((ObjectPrototypes, shapes), (DN2, shapes[2:]))
            for picture in read(
                trained(kind(options["backbone"], visualizer=NoveltyVisualizer(SMALL_SIDE)), data, folder),
                PredictFolder(folder / "shapes", num_workers=0), folder, paths,
            )
        )  # fmt: skip
        save_sheet([[portrait, tiny, alone], [landscape]], target / "picture_shapes.png")


if __name__ == "__main__":
    main()
