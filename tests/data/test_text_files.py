"""Lists and XML as other machines write them: read, or refused with the file, the place and the way out."""

import tempfile
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anomalib_defend.data import SemanticVOC
from anomalib_defend.data.text_files import read_lines, read_xml
from miniatures import write_voc

ENCODINGS = [
    "utf-8",
    "utf-8-sig",
    "latin-1",
    "cp1252",
    "gb2312",
    "shift-jis",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
]
ids = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(ids, st.sampled_from(["1", "0", "-1"])), min_size=1, max_size=6),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([" ", "  ", "\t"]),
)
def test_a_list_is_read_right_or_refused_with_the_place(rows, encoding, newline, space):
    text = newline.join(f"{image}{space}{flag}" for image, flag in rows)
    content = text.encode(encoding, errors="ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dog_train.txt")
        path.write_bytes(content)
        try:
            lines = read_lines(path)
        except ValueError as error:
            message = str(error)
            assert encoding != "utf-8"
            assert message.startswith(f"{path}, line ")
            assert "UTF-8" in message
            return
    expected = content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines == [line.strip() for line in expected]  # as torchvision does
    assert not content.startswith(b"\xef\xbb\xbf")


@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8), max_size=4),
    st.sampled_from([*ENCODINGS, "iso-8859-15", "nonsense"]),
    st.booleans(),
)
def test_an_xml_file_is_read_as_it_declares_or_refused(names, encoding, declares):
    python = "utf-8" if encoding == "nonsense" else encoding
    names = [name for name in names if name.encode(python, errors="ignore").decode(python) == name]
    objects = "".join(f"<object><name>{_escaped(name)}</name></object>" for name in names)
    declaration = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>" if declares else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "0.xml")
        path.write_bytes(f"{declaration}<annotation>{objects}</annotation>".encode(python))
        try:
            root = read_xml(path)
        except ValueError as error:
            message = str(error)
            assert python not in {"utf-8", "utf-8-sig", "utf-16"} or encoding == "nonsense"
            assert "0.xml" in message
            assert "line 1" in message
            assert "save it as UTF-8" in message
            return
    if not declares and not python.startswith("utf-"):  # what declares nothing is UTF-8
        names = [name.encode(python).decode("utf-8") for name in names]
    assert [item.findtext("name") for item in root.iter("object")] == names


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_doctype_is_refused_in_every_encoding(tmp_path, encoding):
    bomb = '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><annotation>&d;</annotation>'
    (tmp_path / "0.xml").write_bytes(bomb.encode(encoding))
    with pytest.raises(ValueError, match=r"0\.xml.* a DOCTYPE is not allowed|0\.xml.*\(a DOCTYPE is not allowed"):
        read_xml(tmp_path / "0.xml")


def built(root, **kwargs):
    data = SemanticVOC(root, "dog", num_workers=0, **kwargs)
    data.prepare_data()
    data.setup()
    return data


def labels_of(data):
    samples = data.test_data.samples
    return {Path(path).stem: label for path, label in zip(samples.image_path, samples.label, strict=True)}


@pytest.fixture
def umlauts(tmp_path):
    """Ids in Unicode's composed form, in lists, in annotations and on disk."""
    train = {f"ü {index}": {"dog": 1} if index % 2 else {"cat": 1} for index in range(8)}
    val = {f"é{index}": {"dog": 1} if index % 2 else {"cat": 1} for index in range(4)}
    xml = {"ö": {"dog": 1}, "ä": {"cat": 1}}
    return write_voc(
        tmp_path / "kit", train=train, val=val, xml=xml, segmentation=[*val, *xml], categories=("cat", "dog")
    )


@pytest.mark.parametrize("where", ["images", "annotations", "segmentation", "one list", "everything", "nothing"])
def test_ids_in_another_unicode_form(umlauts, where):
    expected = labels_of(built(umlauts))
    assert list(expected.values()).count("normal") == 3
    main = umlauts / "ImageSets" / "Main"
    folders = {"images": ["JPEGImages"], "annotations": ["Annotations"], "everything": ["JPEGImages", "Annotations"]}
    for folder in folders.get(where, []):
        for path in list((umlauts / folder).iterdir()):
            path.rename(path.with_name(normalize("NFD", path.name)))
    segmentation = umlauts / "ImageSets" / "Segmentation" / "val.txt"
    texts = {"segmentation": [segmentation], "one list": [main / "cat_val.txt"], "everything": [*main.iterdir()]}
    for path in texts.get(where, []):
        path.write_text(normalize("NFD", path.read_text("utf-8")), "utf-8")
    data = built(umlauts)
    assert {normalize("NFC", name): label for name, label in labels_of(data).items()} == expected
    assert len(data.train_data) + len(data.val_data) == 4
    assert data.train_data[0].image.shape == (3, 32, 40)


def test_hidden_images_that_a_list_names_are_left_out(voc, caplog):
    main = voc / "ImageSets" / "Main"
    for path in main.glob("*_val.txt"):
        path.write_text(path.read_text() + "._v00 1\n")
    (voc / "JPEGImages" / "._v00.jpg").write_bytes(b"\0\5\x16\7")
    assert len(built(voc).test_data) == 8
    assert "1 listed images are hidden files" in caplog.text


def test_categories_in_two_unicode_forms_are_one(tmp_path):
    labels = {f"{index}": {"Kühe" if index % 2 else "cat": 1} for index in range(6)}
    kit = write_voc(tmp_path, train=labels, val={f"v{k}": v for k, v in labels.items()}, categories=("cat", "Kühe"))
    main = kit / "ImageSets" / "Main"
    (main / "Kühe_train.txt").rename(main / normalize("NFD", "Kühe_train.txt"))
    for form in ("NFC", "NFD"):
        data = SemanticVOC(kit, normalize(form, "Kühe"), num_workers=0)
        data.setup()
        assert data.categories == ["Kühe"]
        assert len(data.train_data) + len(data.val_data) == 3
        assert data.num_normal_categories == 1


def test_one_image_that_two_ids_lead_to(tmp_path):
    """Its categories are those of both."""
    kit = write_voc(
        tmp_path, train={f"t{i}": {"dog": 1} for i in range(4)}, val={"a": {"cat": 1}, "b": {"dog": 1}, "c": {}}
    )
    (kit / "JPEGImages" / "a.jpg").unlink()
    (kit / "JPEGImages" / "a.jpg").symlink_to("b.jpg")
    data = built(kit)
    assert list(data.test_data.samples.label) == ["normal", "novel"]


def test_images_of_any_name_are_found_by_id(tmp_path):
    names = ["a b", "x.y.z", "%s", "{0}", "ß", "日本", "-1", "1 0"]
    labels = {name: {"dog": 1} if number % 2 else {} for number, name in enumerate(names)}
    kit = write_voc(tmp_path, train={f"t{i}": {"dog": 1} for i in range(4)}, val=labels)
    assert labels_of(built(kit)) == {name: "normal" if flags else "novel" for name, flags in labels.items()}
    Image.new("RGB", (4, 4)).save(kit / "JPEGImages" / "a b.PNG")
    assert len(built(kit).test_data) == len(names)
