"""COCO files as tools write them: what Python's ``json``, and so pycocotools, reads is read alike; else refused."""

import json
import math
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.data.coco import read_instances
from anomalib_defend.files.names import category_name, composed

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
unused = st.dictionaries(
    st.sampled_from(["area", "bbox", "segmentation", "score", "iscrowd"]),
    st.sampled_from([math.nan, math.inf, -math.inf, None, [], {}, [[math.nan]], 1e400, -0.0, 2**70, "x", "NaN"]),
    max_size=2,
)


def respelled(number):
    """What Python, and so pycocotools, takes for the same id; once in a while what it does not."""
    if isinstance(number, str):
        return st.just(number)
    return st.sampled_from([number, int(number), float(number), number, int(number), str(number)])


@st.composite
def files(draw):
    numbers = draw(
        st.sampled_from(
            [
                *(st.integers(0, 9), st.integers(0, 9).map(float), st.integers(0, 9).map(str), texts),
                st.integers(0, 2) | st.integers(0, 2).map(str),  # which are others
            ]
        )
    )
    images = draw(st.lists(numbers, min_size=1, max_size=4))
    categories = draw(st.lists(numbers, min_size=1, max_size=3))
    one_name = draw(st.booleans())  # for all images of one id, which may come twice
    content = {
        "info": draw(unused),
        "images": [
            {**draw(unused), "id": number, "file_name": f"{number}.jpg" if one_name else draw(texts)}
            for number in images
        ],
        "categories": [
            {**draw(unused), "id": number, "name": draw(st.sampled_from([f"cat {number}", "dog", 3]))}
            for number in draw(st.sampled_from([categories, sorted(set(categories), key=str)]))
        ],
        "annotations": [],
    }
    for _ in range(draw(st.integers(0, 4))):
        pair = {"image_id": draw(st.sampled_from(images)), "category_id": draw(st.sampled_from(categories))}
        which = draw(st.sampled_from(["image_id", "category_id"]))
        content["annotations"].append({**draw(unused), **pair, which: draw(respelled(pair[which]))})
    return dict(draw(st.permutations(list(content.items()))))


def as_pycocotools(content):
    """The categories' names, and the names of each file's categories, or ``None`` if something does not fit."""
    names, paths = {}, {}
    for index, field, value in ((names, "categories", "name"), (paths, "images", "file_name")):
        for item in content[field]:
            if composed(str(index.setdefault(item["id"], item[value]))) != composed(str(item[value])):
                return None
    labels = {path: set() for path in paths.values()}
    for item in content["annotations"]:
        if item["image_id"] not in paths or item["category_id"] not in names:
            return None
        labels[paths[item["image_id"]]].add(str(names[item["category_id"]]))
    return {str(name) for name in names.values()}, labels


@given(files(), st.booleans(), st.sampled_from([None, 1]), st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]))
def test_read_as_pycocotools_reads_or_refused(content, ascii_only, indent, encoding):
    encoded = json.dumps(content, ensure_ascii=ascii_only, indent=indent).encode(encoding, errors="ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "instances_val2017.json")
        path.write_bytes(encoded)
        try:
            expected = as_pycocotools(json.loads(encoded.decode("utf-8")))
        except ValueError:  # another encoding, or a mark
            expected = None
        try:
            names, labels = read_instances(path)
        except ValueError as error:
            message = str(error)
            assert expected is None
            assert message.startswith(str(path))
            assert any(place in message for place in ("$.", "line "))
            return
    assert (set(names.values()), labels) == expected
    assert all(isinstance(category_name(name), str) for name in names.values())
