"""COCO: both years, its settings, numbers and crowds, its places on disk, files that are wrong, its download."""

import json
import math
import os
import shutil
from pathlib import Path
from unicodedata import normalize

import pytest

from anomalib_defend.data import SemanticCOCO, coco
from measurements.coco_reading import make_folder, read_annotations, read_samples
from miniatures import COCO_LABELS, md5_of, write_coco

DOG = {*range(1, 11)}
NOT_DOG = {*range(11, 17)}


def build(root, category="dog", **kwargs):
    datamodule = SemanticCOCO(root, category, num_workers=0, **kwargs)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def ids(*datasets, label=None):
    """The numbers of the images, as the end of their names says."""
    rows = [row for dataset in datasets for row in dataset.samples.itertuples()]
    numbers = [int(Path(row.image_path).stem[-12:]) for row in rows if label is None or row.label_index == label]
    assert len(numbers) == len(set(numbers))
    return set(numbers)


@pytest.mark.parametrize("year", [2014, 2017])
@pytest.mark.parametrize(
    ("category", "setting", "train", "normal"),
    [
        ("dog", "uni_class", DOG, {101, 102, 103}),
        ("cell phone", "uni_class", {15, 16}, {106}),
        (["dog", "cell phone"], "uni_class", {*DOG, 15, 16}, {101, 102, 103, 106}),
        ("dog", "leave_one_out", {9, 10, *NOT_DOG}, {103, 104, 105, 106}),
        (["person", "cell phone"], "leave_one_out", DOG, {101, 102, 103}),
    ],
)
def test_settings(tmp_path, year, category, setting, train, normal):
    datamodule = build(write_coco(tmp_path, year), category, setting=setting, year=year)
    assert ids(datamodule.train_data, datamodule.val_data) == train
    assert ids(datamodule.test_data, label=0) == normal
    assert ids(datamodule.test_data, label=1) == COCO_LABELS["val"].keys() - normal  # those without annotations too
    parts = [ids(data) for data in (datamodule.train_data, datamodule.val_data, datamodule.test_data)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    again = build(tmp_path, category, setting=setting, year=year)
    for name in ("train_data", "val_data", "test_data"):
        assert getattr(again, name).samples.equals(getattr(datamodule, name).samples)


@pytest.mark.parametrize("category", [18, "18", [18], ["dog", 18, "18"]])
def test_a_category_by_number(tmp_path, category):
    assert ids(build(write_coco(tmp_path), category).test_data, label=0) == {101, 102, 103}


def test_numbers_that_two_categories_share_name_none(tmp_path):
    """pycocotools takes ids 18 and "18" for two."""
    root = write_coco(tmp_path)
    for path in (root / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content["categories"].append({"id": "18", "name": "wolf"})
        content["annotations"] += [
            {**content["annotations"][0], "category_id": "18", "image_id": image["id"]}
            for image in content["images"][:3]
        ]
        path.write_text(json.dumps(content))
    wolf, dog = build(root, "wolf"), build(root, "dog")
    assert ids(wolf.train_data, wolf.val_data) == {1, 2, 3}
    assert ids(dog.train_data, dog.val_data) == DOG
    with pytest.raises(ValueError, match=r"unknown '18'.*Available are: 1 person, 77 .*, 90 toothbrush, dog, wolf"):
        build(root, 18)


def test_categories_that_cannot_be_used(tmp_path):
    write_coco(tmp_path)
    with pytest.raises(ValueError, match=r"unknown '2'\. Available are: 1 person, 18 dog, 77 cell phone, 90 tooth"):
        build(tmp_path, 2)
    with pytest.raises(ValueError, match=r"'toothbrush' has 0 train image\(s\).*enough: cell phone \(2\), dog \(10\)"):
        build(tmp_path, 90)


@pytest.mark.parametrize(("folder", "images"), [("coco", "."), (".", "images"), ("coco", "images")])
def test_places(tmp_path, folder, images):
    write_coco(tmp_path / folder, images=images)
    assert len(build(tmp_path).test_data) == 8


def test_both_years_in_one_folder(tmp_path):
    write_coco(write_coco(tmp_path), 2014)
    assert "COCO_val2014_" in build(tmp_path, year=2014).test_data.samples.image_path[0]
    assert "COCO" not in Path(build(tmp_path).test_data.samples.image_path[0]).name
    with pytest.raises(ValueError, match="year must be one of 2014, 2017, got 2015"):
        SemanticCOCO(tmp_path, "dog", year=2015)


def test_what_is_missing_is_named(tmp_path):
    everything = (
        r"nowhere' is no folder; it needs .*/nowhere/annotations/instances_train2017\.json "
        r"\(in http://images.*trainval2017\.zip\), "
        r".*instances_val2017\.json .*/nowhere/train2017 .*/nowhere/val2017 \(in .*\)\. Pass download=True, or unpack"
    )
    for method in ("prepare_data", "setup"):
        with pytest.raises(FileNotFoundError, match=everything):
            getattr(SemanticCOCO(tmp_path / "nowhere", "dog"), method)()
    write_coco(tmp_path / "coco")
    shutil.rmtree(tmp_path / "coco" / "val2017")
    with pytest.raises(FileNotFoundError, match=r"lacks [^ ]*/coco/val2017 \(in [^ ]*\)\. Pass"):
        build(tmp_path)


def test_a_part_of_the_images(tmp_path):
    for image in (1, 2, 3, 4, 12):  # 12 shows no dog
        (write_coco(tmp_path) if image == 1 else tmp_path).joinpath("train2017", f"{image:012d}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"4 of 18 images are missing from .*/train2017: 000000000001\.jpg, "):
        build(tmp_path)


def edited(root, **changes):
    """Replace lists of instances_val2017.json."""
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON, or truncated .*line 1, column 1"),
        (b'{"images": [\n{"id": 1, "file_', "no JSON, or truncated .*line 2, column 11"),
        (b"<html>", "no JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"images": [], "annotations": [], "categories": [], "info": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"images": [], "categories": []}', "missing required field `annotations`"),
        (b'{"images": [{"id": true, "file_name": "a"}]}', r"got `bool` - at `\$\.images\[0\]\.id`"),
    ],
)
def test_a_file_of_another_kind(tmp_path, content, message):
    (write_coco(tmp_path) / "annotations" / "instances_val2017.json").write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf"instances_val2017\.json is not a COCO instances file: .*{message}.*Correct it .* official archive",
    ):
        build(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{"id": 7, "image_id": 101, "caption": "a dog"}]},
            r"field `category_id` - at `\$.annotations\[0",
        ),
        (
            {"annotations": [{"image_id": "101", "category_id": 18}]},
            r"val2017\.json has annotations of unknown ids: image '101' \(\$\.annotations\[0\]\)\. Ids as text",
        ),
        (
            {"annotations": [{"image_id": 101, "category_id": 18}, {"image_id": 5, "category_id": 18}]},
            r"val2017\.json has annotations of unknown ids: image 5 \(\$\.annotations\[1\]\)\. Correct",
        ),
        ({"annotations": [{"image_id": 101, "category_id": 2}]}, r"unknown ids: category 2 \(\$\.annotations\[0\]\)"),
        (
            {"images": [{"id": 101, "file_name": name} for name in "ab"], "annotations": []},
            r"val2017\.json has several names for one id, at \$\.images\[1\]: 101 is 'a' and 'b'",
        ),
        (
            {"categories": [{"id": 1, "name": name} for name in ("dog", "cat")], "annotations": []},
            r"several names for one id, at \$\.categories\[1\]: 1 is 'dog' and 'cat'",
        ),
        (
            {"categories": [{"id": 1, "name": "dog"}], "annotations": []},
            r"val.*other names for categories 1 than .*train",
        ),
    ],
)
def test_contents_that_are_wrong(tmp_path, changes, message):
    edited(write_coco(tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


def rewritten(root, change=lambda _: None, encode=lambda text: text.encode()):
    """Change both instances files, as another tool would have written them."""
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        change(content)
        path.write_bytes(encode(json.dumps(content)))
    return root


def with_ids(convert):
    def change(content):
        for item in content["annotations"]:
            item["image_id"], item["category_id"] = convert(item["image_id"]), convert(item["category_id"])
        for item in content["images"] + content["categories"]:
            item["id"] = convert(item["id"])

    return change


def float_annotations(content):
    for item in content["annotations"]:
        item["image_id"], item["category_id"] = float(item["image_id"]), float(item["category_id"])


def twice(content):
    content["images"] *= 2
    content["categories"] *= 2


VARIANTS = {
    "NaN in a field that is not used": lambda content: content["annotations"][0].update(area=float("nan")),
    "Infinity": lambda content: content["annotations"][0].update(bbox=[float("inf"), -float("inf"), 1, 1]),
    "ids are text": with_ids(str),
    "ids are floats": with_ids(float),
    "ids of annotations are floats": float_annotations,
    "every entry twice": twice,
    "entries without what is not used": lambda content: [item.pop("bbox") for item in content["annotations"]],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_pycocotools_reads_is_read(tmp_path, variant):
    expected = ids(build(write_coco(tmp_path / "as published")).train_data)
    root = rewritten(write_coco(tmp_path / "rewritten"), VARIANTS[variant])
    assert ids(build(root).train_data) == expected
    assert ids(build(root, 18).train_data) == expected
    assert ids(build(root, "cell phone").test_data, label=0) == {106}


def umlauts(name, form):
    """A file name that is the same one in every Unicode form."""
    return normalize(form, f"ü/é{name}")


@pytest.mark.parametrize("where", ["images", "lists", "one list's categories", "root", "nothing"])
def test_names_in_another_unicode_form(tmp_path, where):
    listed = "NFD" if where == "lists" else "NFC"

    def rename(content):
        for item in content["images"]:
            item["file_name"] = umlauts(item["file_name"], listed)
        content["categories"][1]["name"] = normalize(listed, "Kühe")

    root = rewritten(write_coco(tmp_path / "Rücken"), rename)
    if where == "one list's categories":
        path = root / "annotations" / "instances_val2017.json"
        path.write_text(path.read_text().replace("K\\u00fche", "Ku\\u0308he"))
    for path in list(root.glob("*2017/*.jpg")):
        target = path.parent / umlauts(path.name, "NFD" if where == "images" else "NFC")
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    if where == "root":
        root.rename(tmp_path / normalize("NFD", root.name))
    datamodule = build(root, normalize("NFD", "Kühe"))
    assert len(datamodule.train_data) + len(datamodule.val_data) == 10
    assert list(datamodule.test_data.samples.label).count("normal") == 3
    assert len(datamodule.test_data) == 8


def test_back_slashes_are_told(tmp_path):
    def rename(content):
        for item in content["images"]:
            item["file_name"] = f"images\\{item['file_name']}"

    with pytest.raises(FileNotFoundError, match=r"images are missing from .*Write / instead of \\ in the list"):
        build(rewritten(write_coco(tmp_path), rename))


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-8-sig", r"line 1: .*byte order mark \(BOM\) of UTF-8.*without BOM"),
        ("utf-16", r"line 1: .*BOM\) of UTF-16.*iconv -f UTF-16"),
        ("utf-16-le", "line 1, byte 2: a zero byte, as UTF-16"),
        ("latin-1", r"line 1, byte \d+: the byte 0xfc is not UTF-8.*iconv -f latin1"),
    ],
)
def test_other_encodings_are_refused_with_the_way_out(tmp_path, encoding, message):
    def encode(text):
        return text.replace("000000000018", "St\u00fcck").encode(encoding)

    root = rewritten(write_coco(tmp_path), lambda content: content["annotations"][0].update(area=math.nan), encode)
    with pytest.raises(ValueError, match=rf"instances_train2017\.json, {message}"):
        build(root)


@pytest.fixture
def official(tmp_path, serve, monkeypatch):
    """Stand-ins for the official archives on a server of our own: their folder, and the server's handler."""
    made, served = write_coco(tmp_path / "made"), tmp_path / "served"
    (made / "annotations" / "captions_val2017.json").write_text("{}")
    shutil.make_archive(str(served / "annotations" / "annotations_trainval2017"), "zip", made, "annotations")
    for name in ("train2017", "val2017"):
        shutil.make_archive(str(served / "zips" / name), "zip", made, name)
    url, handler = serve(served)
    monkeypatch.setattr(coco, "_URL", url)
    for path in served.rglob("*.zip"):
        monkeypatch.setitem(coco._MD5, path.relative_to(served).as_posix(), md5_of(path))
    return served, handler


def contents(root):
    return {path.name: sum(1 for _ in path.iterdir()) for path in root.iterdir()}


def test_download_once(tmp_path, official):
    _, handler = official
    for _ in range(2):
        assert len(build(tmp_path / "root", download=True).test_data) == 8
    assert contents(tmp_path / "root") == {"annotations": 2, "train2017": 18, "val2017": 8}
    assert len(handler.requests) == 3


def test_only_what_is_missing_is_downloaded(tmp_path, official):
    root = write_coco(tmp_path / "root" / "coco", 2014)  # its instances files stay
    write_coco(root, images="images")
    shutil.rmtree(root / "images" / "val2017")
    (root / "annotations" / "instances_train2017.json").unlink()
    kept = (root / "annotations" / "instances_val2017.json").stat().st_mtime_ns
    assert len(build(tmp_path / "root", download=True).test_data) == 8
    assert len(official[1].requests) == 2
    assert (root / "annotations" / "instances_val2017.json").stat().st_mtime_ns == kept
    assert contents(root) == {"annotations": 4, "train2014": 18, "val2014": 8, "images": 1, "val2017": 8}


def test_a_download_that_failed_goes_on(tmp_path, official, monkeypatch):
    _, handler = official
    right = coco._MD5["zips/val2017.zip"]
    monkeypatch.setitem(coco._MD5, "zips/val2017.zip", "0" * 32)
    with pytest.raises(RuntimeError, match=r"val2017\.zip was downloaded but its MD5 is not 0000"):
        build(tmp_path / "root", download=True)
    assert contents(tmp_path / "root") == {"annotations": 2, "train2017": 18}
    monkeypatch.setitem(coco._MD5, "zips/val2017.zip", right)
    assert len(build(tmp_path / "root", download=True).test_data) == 8
    assert len(handler.requests) == 4


@pytest.mark.slow
def test_a_stock_model_on_the_command_line(tmp_path, monkeypatch):
    from anomalib.cli.cli import AnomalibCLI

    monkeypatch.chdir(tmp_path)
    root = str(write_coco(tmp_path / "root", 2014))
    run = AnomalibCLI(
        ["train", "--model", "Padim", "--model.backbone", "resnet18", "--model.pre_trained", "false",
         "--data", "SemanticCOCO", "--data.root", root, "--data.category", "[77,dog]",
         "--data.year", "2014", "--data.num_workers", "0",
         "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "true"],
    )  # fmt: skip
    assert run.datamodule.categories == ["cell phone", "dog"]
    assert run.datamodule.num_normal_categories == 2


def test_the_files_of_the_measurement_are_like_the_official_ones(tmp_path):
    """Their fields and kinds of outlines; both readers agree on them."""
    make_folder(tmp_path, {"train": (300, 2000), "val": (20, 100)})
    file = json.loads((tmp_path / "annotations" / "instances_train2017.json").read_text())
    assert (len(file["images"]), len(file["annotations"]), len(file["categories"])) == (300, 2000, 80)
    crowds = [item for item in file["annotations"] if item["iscrowd"]]
    assert crowds
    assert all(isinstance(item["segmentation"], dict) for item in crowds)
    assert {"license", "coco_url", "flickr_url", "date_captured", "width"} < file["images"][0].keys()
    expected = {(item["image_id"], item["category_id"]) for item in file["annotations"]}
    images = [image for image in read_annotations(tmp_path).images if image.split == "train"]  # type: ignore[attr-defined]
    assert len(images) == 300
    found = {(int(Path(image.path).stem), int(name.split()[1])) for image in images for name in image.categories}
    assert found == expected
    train = {image for image, category in expected if category == 1}
    assert (read_samples(tmp_path).split == "train").sum() == len(train)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def coco_mini(tmp_path_factory):
    pack = Path(os.environ.get("ANOMALIB_DEFEND_SHARED", "nowhere")) / "data" / "coco_mini.zip"
    if not pack.is_file():
        pytest.skip("ANOMALIB_DEFEND_SHARED does not name a folder with data/coco_mini.zip")
    folder = tmp_path_factory.mktemp("coco_mini")
    shutil.unpack_archive(pack, folder)
    return folder


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("category", "setting"),
    [
        ("person", "uni_class"),
        ("dining table", "uni_class"),
        (3, "uni_class"),
        (["person", "surfboard", "tie", "banana"], "leave_one_out"),  # one alone leaves nothing novel
    ],
)
def test_counts_of_the_real_images(coco_mini, category, setting):
    """Counted from the files themselves, as COCO's own documentation describes them."""
    chosen = {category} if not isinstance(category, list) else set(category)
    expected = {}
    for split in ("train", "val"):
        file = json.loads((coco_mini / "coco" / "annotations" / f"instances_{split}2017.json").read_text())
        assert len(file["images"]) == 70
        numbers = {item["id"] for item in file["categories"] if not chosen.isdisjoint((item["id"], item["name"]))}
        assert len(numbers) == len(chosen)
        is_normal = (
            numbers.__contains__ if setting == "uni_class" else lambda number, novel=numbers: number not in novel
        )
        expected[split] = {item["image_id"] for item in file["annotations"] if is_normal(item["category_id"])}
    datamodule = build(coco_mini, category, setting=setting)
    assert ids(datamodule.train_data, datamodule.val_data) == expected["train"]
    assert ids(datamodule.test_data, label=0) == expected["val"]
    assert len(datamodule.test_data) == 70
    assert len(datamodule.test_data[0].image) == 3
