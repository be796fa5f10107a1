"""The protocol: what is normal, what is trained on, what is tested, and what is refused."""

import logging
from pathlib import Path

import pytest
from anomalib.data import AnomalibDataModule
from PIL import Image

from anomalib_defend.data import SemanticDataModule
from anomalib_defend.data.protocol import AnnotatedImage, Annotations, make_samples, normal_categories

CATEGORIES = ["bird", "cat", "dog", "empty", "single"]


class Memory(SemanticDataModule):
    """Annotations from a list: the smallest possible format."""

    images: list[AnnotatedImage]

    def read_annotations(self) -> Annotations:
        return Annotations(CATEGORIES, self.images, {7: "dog", 90: "cat"})


@pytest.fixture
def images(tmp_path: Path) -> list[AnnotatedImage]:
    rows = [
        *((f"train_dog{i:02d}", {"dog"}, "train") for i in range(20)),
        *((f"train_cat{i:02d}", {"cat"}, "train") for i in range(10)),
        ("train_both", {"cat", "dog"}, "train"),
        ("train_single", {"single"}, "train"),
        ("train_none", set(), "train"),
        *((f"test_dog{i:02d}", {"dog"}, "test") for i in range(6)),
        *((f"test_cat{i:02d}", {"cat"}, "test") for i in range(18)),
        ("test_bird", {"bird"}, "test"),
        ("test_both", {"cat", "dog"}, "test"),
        ("test_none", set(), "test"),
    ]
    for index, (name, _, _) in enumerate(rows):  # upstream's synthetic anomalies fail below 64 pixels
        Image.new("RGB", (64, 64), (index, 0, 0)).save(tmp_path / f"{name}.png")
    return [AnnotatedImage(str(tmp_path / f"{name}.png"), frozenset(held), split) for name, held, split in rows]


def build(images: list[AnnotatedImage], category: list[str | int] | str | int = "dog", **kwargs: object) -> Memory:
    datamodule = Memory(root="memory", category=category, num_workers=0, **kwargs)
    datamodule.images = images
    datamodule.setup()
    return datamodule


def names(dataset: object, label: int | None = None) -> list[str]:
    samples = dataset.samples  # type: ignore[attr-defined]
    samples = samples if label is None else samples[samples.label_index == label]
    return [Path(path).stem for path in samples.image_path]


def test_normal_categories() -> None:
    assert normal_categories(CATEGORIES, ["dog"], "uni_class") == {"dog"}
    assert normal_categories(CATEGORIES, ["dog", "cat"], "uni_class") == {"dog", "cat"}
    assert normal_categories(CATEGORIES, ["dog", "cat"], "leave_one_out") == {"bird", "empty", "single"}


@pytest.mark.parametrize("category", ["dog", "cat", ["cat", "dog"]])
@pytest.mark.parametrize("setting", ["uni_class", "leave_one_out"])
def test_labels_follow_the_definition(images: list[AnnotatedImage], category: list[str] | str, setting: str) -> None:
    chosen = {category} if isinstance(category, str) else set(category)
    normal = chosen if setting == "uni_class" else set(CATEGORIES) - chosen
    samples = make_samples(images, normal)
    held = {image.path: image.categories for image in images}
    for row in samples.itertuples():
        assert row.label_index == int(not held[row.image_path] & normal)
        assert row.label == ("novel" if row.label_index else "normal")
        assert row.categories == "; ".join(sorted(held[row.image_path]))
    assert not (samples[samples.split == "train"].label_index).any()
    assert set(samples.image_path) == {
        image.path for image in images if image.split == "test" or image.categories & normal
    }
    assert samples.attrs["task"] == "classification"


def test_an_image_listed_twice_appears_once_with_all_its_categories() -> None:
    images = [AnnotatedImage("a", frozenset(held), "test") for held in ({"cat"}, {"dog"}, {"cat"})]
    (row,) = make_samples(images, {"dog"}).itertuples()
    assert (row.label_index, row.categories) == (0, "cat; dog")


def test_an_image_in_training_and_test_is_refused() -> None:
    images = [AnnotatedImage("a.jpg", frozenset({"dog"}), split) for split in ("train", "test")]
    with pytest.raises(ValueError, match=r"1 image\(s\) are listed for training and for test.*a\.jpg"):
        make_samples(images, {"dog"})


@pytest.mark.parametrize("val_split_mode", ["from_train", "from_test", "synthetic"])
def test_splits_are_disjoint_and_training_is_normal(images: list[AnnotatedImage], val_split_mode: str) -> None:
    datamodule = build(images, val_split_mode=val_split_mode, val_split_ratio=0.2)
    train, val, test = (set(names(data)) for data in (datamodule.train_data, datamodule.val_data, datamodule.test_data))
    if val_split_mode != "synthetic":  # its novel images are new files
        assert len(train | val | test) == 48 == len(train) + len(val) + len(test)
    assert not train & test
    assert not datamodule.train_data.has_anomalous
    assert all("dog" in name or "both" in name for name in train)
    assert datamodule.val_data.has_normal


def test_same_as_test(images: list[AnnotatedImage]) -> None:
    datamodule = build(images, val_split_mode="same_as_test")
    assert names(datamodule.val_data) == names(datamodule.test_data)
    assert names(datamodule.test_data, 0) == ["test_both", *(f"test_dog{i:02d}" for i in range(6))]


def test_validation_comes_from_training_and_is_a_tenth(images: list[AnnotatedImage]) -> None:
    datamodule = build(images)
    assert len(datamodule.val_data) == 2
    assert len(datamodule.train_data) == 19
    assert all(name.startswith("train") for name in names(datamodule.val_data))


@pytest.mark.parametrize("ratio", [0.001, 0.5, 0.999])
def test_neither_part_of_a_small_split_is_empty(images: list[AnnotatedImage], ratio: float) -> None:
    datamodule = build(images, val_split_ratio=ratio, max_train_images=2)
    assert len(datamodule.val_data) == len(datamodule.train_data) == 1


def test_the_seed_decides(images: list[AnnotatedImage]) -> None:
    def splits(order: int, **kwargs: object) -> list[list[str]]:
        datamodule = build(images[::order], val_split_ratio=0.5, max_train_images=15, max_test_images=9, **kwargs)
        return [names(data) for data in (datamodule.train_data, datamodule.val_data, datamodule.test_data)]

    assert splits(1) == splits(-1) == splits(1, seed=0)
    assert all(first != second for first, second in zip(splits(1), splits(1, seed=1), strict=True))


def test_subsampling_keeps_the_proportion_of_labels(images: list[AnnotatedImage]) -> None:
    datamodule = build(images, max_train_images=10, max_test_images=9)
    assert len(datamodule.train_data) + len(datamodule.val_data) == 10
    assert [len(names(datamodule.test_data, label)) for label in (0, 1)] == [2, 7]  # of 7 and 20
    assert [len(names(build(images, max_test_images=2).test_data, label)) for label in (0, 1)] == [1, 1]
    assert len(build(images, max_test_images=1000).test_data) == 27


def test_category_is_a_name_for_paths_and_independent_of_order(images: list[AnnotatedImage]) -> None:
    assert build(images, "dog").category == "dog"
    assert build(images, ["dog", "cat", "dog"]).category == build(images, ["cat", "dog"]).category == "cat_dog"
    assert build(images, "dog", setting="leave_one_out").category == "not_dog"
    many = Memory(root="memory", category=[f"category {i}" for i in range(40)])
    assert many.category == "category 0_and_39_more"
    assert Memory(root="memory", category="ä" * 120).category == "ä" * 50  # bytes are what a file system counts


def test_number_of_normal_categories(images: list[AnnotatedImage]) -> None:
    assert build(images, ["dog", "cat"]).num_normal_categories == 2
    assert build(images, ["dog"], setting="leave_one_out").num_normal_categories == 4
    with pytest.raises(RuntimeError, match="setup"):
        _ = Memory(root="memory", category="dog").num_normal_categories


def test_log_has_the_counts_and_the_normal_categories(
    images: list[AnnotatedImage],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="anomalib_defend.data.semantic"):
        build(images, ["dog", "cat"])
    assert caplog.messages == [
        "Memory, uni_class: train 28 normal / 0 novel, val 3 normal / 0 novel, test 25 normal / 2 novel. "
        "Normal: cat, dog.",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"category": "dgo"}, "category: unknown 'dgo'. Did you mean 'dog'. Available are: 7 dog, 90 cat"),
        ({"category": []}, "category must name at least one"),
        ({"category": "empty"}, r"'empty' has 0 train image\(s\).*at least 2.*: cat \(11\), dog \(21\)\."),
        ({"category": ["dog", "single"]}, r"'single' has 1 train image\(s\)"),
        ({"category": "empty", "setting": "leave_one_out"}, r"'empty' has 0 test image\(s\).*bird \(1\)"),
        ({"category": CATEGORIES, "setting": "leave_one_out"}, "category: .* leaves no normal category"),
        ({"on_error": "ignore"}, "on_error must be one of raise, skip, got 'ignore'"),
        ({"setting": "one_vs_rest"}, "setting must be one of uni_class, leave_one_out, got 'one_vs_rest'"),
        ({"val_split_mode": "none"}, "val_split_mode must be one of from_train.*threshold is set from the validation"),
        ({"val_split_mode": "from_dir"}, "val_split_mode must be one of"),
        ({"val_split_ratio": 0.0}, r"val_split_ratio must lie between 0 and 1.*got 0\.0"),
        ({"val_split_mode": "synthetic", "val_split_ratio": 0.05}, "val_split_ratio=0.05 of 21 training images"),
        ({"val_split_mode": "from_test", "val_split_ratio": 0.01}, "leaves no normal validation image"),
        ({"max_train_images": 1}, "max_train_images must be at least 2, got 1"),
        ({"max_test_images": 0}, "max_test_images must be at least 2, got 0"),
    ],
)
def test_refused_before_the_first_epoch(images: list[AnnotatedImage], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(images, **arguments)


def test_no_training_image_left_is_refused(images: list[AnnotatedImage]) -> None:
    kept = [image for image in images if image.split == "test" or image.categories == {"dog"}]
    with pytest.raises(ValueError, match=r"0 training image\(s\) hold a normal category"):
        build(kept, "dog", setting="leave_one_out")


@pytest.mark.parametrize(("label", "kept"), [("normal", {"cat"}), ("novel", {"dog"})])
def test_a_test_split_without_one_label_is_refused(images: list[AnnotatedImage], label: str, kept: set[str]) -> None:
    kept_images = [image for image in images if image.split == "train" or image.categories == kept]
    with pytest.raises(ValueError, match=f"leaves no {label} image among the .* test images. Available are: bird"):
        build(kept_images, "dog")


def test_missing_files_are_counted_and_named(images: list[AnnotatedImage], tmp_path: Path) -> None:
    for index in range(4):
        (tmp_path / f"train_dog0{index}.png").unlink()
    (tmp_path / "train_none.png").unlink()  # not used
    message = f"4 of 48 images are missing from {tmp_path}: train_dog00.png, train_dog01.png, train_dog02.png, "
    with pytest.raises(FileNotFoundError, match=message):
        build(images)


def damage_file(path: Path, damage: str) -> None:
    Image.effect_noise((64, 64), 50).save(path, format="JPEG" if "jpg" in damage else "PNG")
    content = bytearray(path.read_bytes())
    if damage == "broken png":  # complete, but its checksums are wrong
        content[400:500] = bytes(100)
    path.write_bytes(
        {"empty": b"", "text": b"not an image"}.get(damage, content[:500] if "trunc" in damage else content)
    )


DAMAGES = {
    "empty": "the file is empty",
    "text": "cannot identify image file",
    "truncated jpg": "truncated",
    "truncated png": "truncated",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_file_is_refused(images: list[AnnotatedImage], tmp_path: Path, damage: str) -> None:
    damage_file(tmp_path / "test_both.png", damage)
    message = rf"1 of 48 files are not usable images: {tmp_path}/test_both.png \(.*{DAMAGES[damage]}.*on_error='skip'"
    with pytest.raises(OSError, match=message):
        build(images)


def test_a_broken_file_is_named_when_it_is_read(images: list[AnnotatedImage], tmp_path: Path) -> None:
    damage_file(tmp_path / "test_both.png", "broken png")
    datamodule = build(images)  # only decoding tells
    with pytest.raises(OSError, match=f"Cannot read image {tmp_path}/test_both.png"):
        list(datamodule.test_dataloader())


@pytest.mark.parametrize("damage", [*DAMAGES, "broken png"])
def test_an_incomplete_file_is_skipped_and_counted(
    images: list[AnnotatedImage], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    damage_file(tmp_path / "test_both.png", damage)
    datamodule = build(images, on_error="skip")
    assert "test_both" not in names(datamodule.test_data)
    assert len(datamodule.test_data) == 26
    assert f"1 of 48 files are not usable images: {tmp_path}/test_both.png" in caplog.text
    list(datamodule.test_dataloader())


def test_skipping_leaves_no_category_behind(images: list[AnnotatedImage], tmp_path: Path) -> None:
    for path in tmp_path.glob("test_*dog*.png"):
        path.write_bytes(b"")
    (tmp_path / "test_both.png").write_bytes(b"")
    with pytest.raises(ValueError, match="leaves no normal image among the 20 test images"):
        build(images, on_error="skip")


def test_novel_images_of_another_data_set(images: list[AnnotatedImage], tmp_path: Path) -> None:
    other = Memory(root="memory", category="bird", num_workers=0)
    fakes = [f"fake{i}" for i in range(4)]
    for name in fakes:
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    other.images = [AnnotatedImage(str(tmp_path / f"{name}.png"), frozenset({"bird"}), "test") for name in fakes]
    other.images += [other.images[0]._replace(path="not_a_bird", categories=frozenset({"cat"}))]
    other.images += [other.images[0]._replace(path="training", split="train")]
    datamodule = build(images, ["dog", "cat"], novel_dataset=other)
    assert names(datamodule.test_data, 1) == fakes
    assert names(datamodule.test_data, 0) == names(build(images, ["dog", "cat"]).test_data, 0)
    assert names(datamodule.train_data) == names(build(images, ["dog", "cat"]).train_data)
    assert datamodule.category == "cat_dog_vs_bird"
    every = build(images, ["dog", "cat"], novel_dataset=other, max_test_images=10)
    assert [len(names(every.test_data, label)) for label in (0, 1)] == [9, 1]  # of 25 and 4


def test_novel_images_that_are_normal_here_are_refused(images: list[AnnotatedImage]) -> None:
    other = Memory(root="memory", category="cat", num_workers=0)
    other.images = images
    with pytest.raises(ValueError, match=r"novel_dataset: .* 1 image\(s\) are normal here: .*test_both\.png"):
        build(images, novel_dataset=other)
    other.images = [image for image in images if image.split == "train"]
    with pytest.raises(ValueError, match=r"novel_dataset: .* it has no such test image. Choose another category"):
        build(images, novel_dataset=other)


def test_categories_by_number(images: list[AnnotatedImage]) -> None:
    for category in (7, "7", [7, 90], ["7", "cat"], ["dog", 90]):
        datamodule = build(images, category)
        assert datamodule.categories == (["dog"] if category in (7, "7") else ["cat", "dog"])
        assert datamodule.num_normal_categories == len(datamodule.categories)


def test_from_config_reads_one_category_or_a_list(tmp_path: Path) -> None:
    for value, expected in (
        ("dog", ["dog"]),
        ("[dog, cat]", ["cat", "dog"]),
        ("'5'", ["5"]),
        ("5", ["5"]),
        ("[1, 90]", ["1", "90"]),
    ):
        config = tmp_path / "data.yaml"
        config.write_text(
            "class_path: anomalib_defend.data.SemanticVOC\n"
            f"init_args: {{root: here, category: {value}, setting: leave_one_out, max_train_images: 9, seed: 3}}\n",
        )
        datamodule = AnomalibDataModule.from_config(config)
        assert datamodule.categories == expected
        assert (datamodule.setting, datamodule.max_train_images, datamodule.seed) == ("leave_one_out", 9, 3)
