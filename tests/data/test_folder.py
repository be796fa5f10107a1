"""A user's own folders: both layouts, the automatic split, what is ignored and what is refused."""

import logging
import os
import shutil
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from names import file_names
from PIL import Image

from anomalib_defend.data import SemanticFolder
from anomalib_defend.files.names import category_name, is_hidden
from miniatures import write_folder

NAMES = ("cat", "dog", "fox")


def build(root, category="cat", **kwargs):
    datamodule = SemanticFolder(root, category, num_workers=0, **kwargs)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def files(*datasets, label=None):
    """The images as ``<category>/<name>``."""
    return [
        "/".join(Path(row.image_path).parts[-2:])
        for dataset in datasets
        for row in dataset.samples.itertuples()
        if label is None or row.label_index == label
    ]


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "images")


@pytest.fixture
def split_root(tmp_path):
    """``train`` and ``test``; the fox is in ``test`` only."""
    write_folder(tmp_path / "images" / "train", NAMES[:2])
    write_folder(tmp_path / "images" / "test", NAMES, number=4)
    return tmp_path / "images"


@pytest.mark.parametrize("setting", ["uni_class", "leave_one_out"])
@pytest.mark.parametrize("category", [*NAMES, ["cat", "dog"]])
def test_automatic_split(root, category, setting):
    chosen = {category} if isinstance(category, str) else set(category)
    normal = chosen if setting == "uni_class" else set(NAMES) - chosen
    datamodule = build(root, category, setting=setting)
    train = files(datamodule.train_data, datamodule.val_data)
    test = files(datamodule.test_data)
    assert sorted(name.split("/")[0] for name in train) == sorted([*normal] * 8)
    assert sorted(name.split("/")[0] for name in test) == sorted([*NAMES] * 2)
    assert {name.split("/")[0] for name in files(datamodule.test_data, label=0)} == normal
    assert len({*train, *test}) == len(train) + len(test)
    assert not files(datamodule.train_data, datamodule.val_data, label=1)


def test_the_split_depends_on_the_seed_only(root, tmp_path, monkeypatch):
    """Not on the place of the folder, the order in which it is listed, or the chosen category."""
    expected = sorted(files(build(root).test_data))
    moved = shutil.copytree(root, tmp_path / "a" / "b")
    walk = os.walk
    with monkeypatch.context() as patch:
        patch.setattr(
            os,
            "walk",
            lambda *args, **kwargs: ((top, dirs[::-1], names[::-1]) for top, dirs, names in walk(*args, **kwargs)),
        )
        assert sorted(files(build(moved, "dog", setting="leave_one_out").test_data)) == expected
    assert sorted(files(build(root, seed=1).test_data)) != expected
    with pytest.raises(ValueError, match="seed=None would draw other test images"):
        build(root, seed=None)


@pytest.mark.parametrize(("ratio", "number"), [(0.01, 1), (0.5, 5), (0.97, 9)])
def test_test_split_ratio_leaves_an_image_on_either_side(root, ratio, number):
    datamodule = SemanticFolder(root, "cat", test_split_ratio=ratio)
    splits = [image.split for image in datamodule.read_annotations().images]
    assert (splits.count("train"), splits.count("test")) == (30 - 3 * number, 3 * number)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1])
def test_test_split_ratio_out_of_range(root, ratio):
    with pytest.raises(ValueError, match="test_split_ratio must be above 0 and at most 1"):
        SemanticFolder(root, "cat", test_split_ratio=ratio)


def test_split_folders_are_taken_as_they_are(split_root):
    (split_root / "masks").mkdir()
    datamodule = build(split_root)
    assert sorted(files(datamodule.train_data, datamodule.val_data)) == [f"cat/{i:02d}.png" for i in range(10)]
    assert sorted(files(datamodule.test_data, label=0)) == [f"cat/{i:02d}.png" for i in range(4)]
    assert sorted(files(datamodule.test_data, label=1)) == [
        f"{name}/{i:02d}.png" for name in NAMES[1:] for i in range(4)
    ]
    assert build(split_root, "fox", setting="leave_one_out").num_normal_categories == 2
    assert len(build(split_root, seed=None).test_data) == 12
    with pytest.raises(ValueError, match=r"'fox' has 0 train image.*Categories with enough: cat \(10\), dog \(10\)"):
        build(split_root, "fox")


def test_what_counts_as_an_image(root):
    image = root / "cat" / "00.png"
    nested = root / "cat" / "2024" / "May"
    nested.mkdir(parents=True)
    Image.open(image).save(nested / "UPPER.JPG")
    Image.open(image).convert("L").save(nested / "grey.TIFF")
    for ignored in (".hidden.png", "._00.png", "notes.txt", "Thumbs.db", "mask.npy"):
        (root / "cat" / ignored).write_bytes(b"no image")
    for folder in (root / ".cache", root / "cat" / ".thumbnails", root / "__MACOSX"):
        folder.mkdir()
    shutil.copy(image, root / ".cache")
    shutil.copy(image, root / "cat" / ".thumbnails")
    datamodule = build(root, setting="leave_one_out", test_split_ratio=0.5)
    assert datamodule.num_normal_categories == 2
    cats = [image.path for image in datamodule.read_annotations().images if image.categories == {"cat"}]
    assert len(cats) == 12
    assert {Path(path).name for path in cats} >= {"UPPER.JPG", "grey.TIFF"}
    assert datamodule.test_data[0].image.shape[0] == 3


def test_links(root, tmp_path):
    """To the root, to a category, to a folder in it; a circle ends."""
    (root / "dog").rename(tmp_path / "elsewhere")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    write_folder(tmp_path, ["more"])
    (root / "cat" / "more").symlink_to(tmp_path / "more")
    (root / "cat" / "circle").symlink_to(root / "cat")
    (tmp_path / "link").symlink_to(root)
    images = build(tmp_path / "link", ["cat", "dog"]).read_annotations().images
    assert sorted(next(iter(image.categories)) for image in images) == ["cat"] * 20 + ["dog"] * 10 + ["fox"] * 10


@pytest.mark.parametrize("name", ["Größe ä", "犬", "n" * 200, "長" * 80, "T-shirt (top) [1]"])
def test_unusual_names(tmp_path, name):
    write_folder(tmp_path, [name, "other"])
    datamodule = build(tmp_path, name)
    assert len(files(datamodule.test_data, label=0)) == 2
    assert len(datamodule.category.encode()) < 255
    (tmp_path / "results" / datamodule.category).mkdir(parents=True)


def test_decomposed_names_are_found_as_they_are_typed(tmp_path):
    write_folder(tmp_path, [unicodedata.normalize("NFD", "Größe"), "other"])
    assert len(build(tmp_path, unicodedata.normalize("NFC", "Größe")).train_data) == 7


def test_loose_images(tmp_path, root):
    shutil.copytree(root / "cat", tmp_path / "loose")
    expected = r"root/<category>/<image>, which is split automatically, or root/\{train,test\}/<category>/<image>"
    with pytest.raises(
        ValueError, match=f"10 image.*not in a category: 00.png, 01.png, 02.png, .... Expected {expected}"
    ):
        build(tmp_path / "loose")
    shutil.copy(root / "cat" / "00.png", root)
    with pytest.raises(ValueError, match=r"1 image\(s\) lie in .* itself"):
        build(root)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' is no folder\. Expected root/<category>"):
        build(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no folder with images"):
        build(tmp_path)


@pytest.mark.parametrize(("only", "other"), [("train", "test"), ("test", "train")])
def test_one_of_train_and_test(split_root, only, other):
    shutil.rmtree(split_root / other)
    (split_root / only).rename(split_root / "val")
    shutil.copytree(split_root / "val", split_root / only)  # {train,val} is not two categories
    with pytest.raises(FileNotFoundError, match=f"holds {only} but not {other}.*root='{split_root / only}'"):
        build(split_root)
    assert build(split_root / only).test_data


def test_a_category_named_train(tmp_path):
    """Rail vehicles, a category of VOC and COCO."""
    assert build(write_folder(tmp_path, ["train", "bus"]), "train", setting="leave_one_out").num_normal_categories == 1


def test_an_unreadable_folder_is_named(root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="cat"):
        SemanticFolder(root, "cat").read_annotations()


def test_fakes_as_novel_dataset(root, tmp_path):
    fakes = SemanticFolder(write_folder(tmp_path / "fakes", ["gan", "diffusion"]), ["gan"], test_split_ratio=1.0)
    datamodule = build(root, list(NAMES), novel_dataset=fakes)
    assert sorted(files(datamodule.test_data, label=1)) == [f"gan/{i:02d}.png" for i in range(10)]
    assert len(files(datamodule.test_data, label=0)) == 6
    assert datamodule.category == "cat_dog_fox_vs_gan"


def test_broken_files_are_named_or_skipped(root, caplog):
    (root / "cat" / "00.png").write_bytes(b"")
    with pytest.raises(OSError, match=r"00\.png \(the file is empty\)"):
        build(root, setting="leave_one_out", category="fox")
    datamodule = build(root, setting="leave_one_out", category="fox", on_error="skip")
    kept = files(datamodule.train_data, datamodule.val_data, datamodule.test_data)
    assert "cat/00.png" not in kept
    assert len(kept) == 8 + 8 + 6 - 1
    assert "They are skipped" in caplog.text


def test_subsampling(root):
    datamodule = build(root, max_train_images=4, max_test_images=3)
    assert len(datamodule.train_data) + len(datamodule.val_data) == 4
    assert len(files(datamodule.test_data, label=0)) == 1
    assert len(files(datamodule.test_data, label=1)) == 2


def test_a_stock_model_runs_on_it(root, tmp_path, caplog):
    from anomalib.engine import Engine
    from anomalib.models import Padim

    caplog.set_level(logging.INFO)
    model = Padim(backbone="resnet18", pre_trained=False, layers=["layer1"], n_features=8, visualizer=False)
    datamodule = SemanticFolder(root, ["cat", "dog"], num_workers=0, train_batch_size=4, eval_batch_size=4)
    engine = Engine(default_root_dir=tmp_path / "results", accelerator="cpu", logger=False, fast_dev_run=True)
    engine.fit(model, datamodule=datamodule)
    assert "train 14 normal / 0 novel, val 2 normal / 0 novel, test 4 normal / 2 novel" in caplog.text


def test_normal_images_alone_are_enough_to_train(tmp_path, caplog):
    write_folder(tmp_path, categories=["dog"])
    datamodule = build(tmp_path, "dog")
    assert len(datamodule.train_data) + len(datamodule.val_data) == 8
    assert len(datamodule.test_data) == 2
    assert "without novel test images, the test counts false alarms alone" in caplog.text


def test_an_empty_category_is_named_as_empty(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "bird").mkdir()
    with pytest.raises(ValueError, match=r"category: 'bird' has 0 train image\(s\)"):
        build(tmp_path, "bird")
    assert build(tmp_path, "dog").num_normal_categories == 1


@given(st.dictionaries(file_names, st.sets(file_names, min_size=3, max_size=5), min_size=1, max_size=3))
def test_whatever_the_names(folders):
    """Every image that is not hidden is used once, in training or test, under its category's name."""
    with tempfile.TemporaryDirectory() as root:
        expected = {}
        for category, names in folders.items():
            Path(root, category).mkdir()
            for name in names:
                Image.new("RGB", (1, 1)).save(Path(root, category, f"{name}.png"), format="PNG")
                if not is_hidden(category) and not is_hidden(f"{name}.png"):
                    expected.setdefault(category_name(category), set()).add(str(Path(root, category, f"{name}.png")))
        expected = {category: paths for category, paths in expected.items() if len(paths) > 2}
        for category, paths in expected.items():
            datamodule = build(root, category)
            samples = [data.samples for data in (datamodule.train_data, datamodule.val_data, datamodule.test_data)]
            used = [path for frame in samples for path in frame.image_path[frame.label == "normal"]]
            assert len(used) == len(paths)
            assert set(used) == paths
            assert datamodule.category.encode("utf-8")


def test_other_formats_are_counted(root, caplog):
    for name in ("a.heic", "b.HEIC", "c.jfif", "notes.txt", "._d.heic"):
        (root / "cat" / name).write_bytes(b"photo")
    build(root)
    assert "3 file(s) in" in caplog.text
    assert "(2 .heic, 1 .jfif)" in caplog.text


@st.composite
def linked_trees(draw):
    """Files of three categories, and links in them: names, and what each leads to (a file, or a whole category)."""
    suffixes = st.sampled_from([*(".png", ".JPG", ".jpeg", ".heic", ".JFIF", ".nef", ".txt", ".db", "")])
    files = [
        f"{category}/{name}{suffix}"
        for category in NAMES
        for name, suffix in [
            *((number, ".png") for number in range(3)),
            *draw(
                st.lists(st.tuples(st.sampled_from(["a", "._b", "c/d", "@eaDir/e"]), suffixes), max_size=4, unique=True)
            ),
        ]
    ]
    places = st.sampled_from(
        ["hound", *(f"{category}/more" for category in NAMES), *(f"{category}/{{}}" for category in NAMES)]
    )
    links = draw(st.dictionaries(places, st.sampled_from([*NAMES, *files]), max_size=4))
    return files, links


@given(linked_trees(), st.sampled_from(NAMES))
def test_whatever_is_linked_or_of_another_format(tree, category):
    """What the normal category leads to is normal, under every name and in one split; other formats are counted."""
    files, links = tree
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        for number, file in enumerate(files):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / file, format="PNG")
        for place, target in links.items():
            link = root / place.format(f"link{Path(target).suffix}")
            if not link.exists() and link.parent.is_dir():
                link.symlink_to(root / target)
        logging.getLogger("anomalib_defend").addHandler(handler)
        try:
            datamodule = build(root, category)
        except ValueError as error:  # where links have put all of the few images on one side
            assert "leaves no" in str(error) or "has 0 train image" in str(error)  # noqa: PT017
            return
        finally:
            logging.getLogger("anomalib_defend").removeHandler(handler)
        normal, others = set(), set()
        for parent, folders, names in os.walk(root, followlinks=True):
            below = Path(parent).relative_to(root)
            folders[:] = [] if len(below.parts) > 4 else folders
            shown = [Path(parent, name) for name in names if not is_hidden(str(below / name))]
            others |= {path.resolve() for path in shown if path.suffix.lower() in {".heic", ".jfif", ".nef"}}
            if below.parts[:1] == (category,):
                normal |= {path.resolve() for path in shown if path.suffix.lower() in {".png", ".jpg", ".jpeg"}}
        learned, tested = (
            {(Path(row.image_path).resolve(), row.label_index) for data in parts for row in data.samples.itertuples()}
            for parts in ([datamodule.train_data, datamodule.val_data], [datamodule.test_data])
        )
        assert {path for path, label in learned | tested if label == 0} == normal
        assert not normal & {path for path, label in learned | tested if label == 1}
        assert not {path for path, _ in learned} & {path for path, _ in tested}
        counts = [int(text.split()[0]) for text in said if "are ignored, since anomalib does not read" in text]
        assert bool(counts) == bool(others)
        assert sum(counts) >= len(others)


def test_a_category_that_links_to_another_one(root, caplog):
    """Its images are the same ones: normal under both names, split alike, and said to be."""
    (root / "hound").symlink_to(root / "dog")
    (root / "cat" / "more").symlink_to(root / "dog")
    datamodule = build(root, "hound")
    assert len(files(datamodule.train_data, datamodule.val_data)) == 8
    assert len(files(datamodule.test_data, label=0)) == 2
    assert "listed images are files that another path leads to" in caplog.text
