"""Paths that lead to one file, and files with the same bytes."""

import os
import tempfile
from collections import defaultdict
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.data.protocol import AnnotatedImage, make_samples, one_row_a_file
from anomalib_defend.files import equal
from anomalib_defend.files.equal import equal_files, find_files

FILES = 4
KINDS = ("plain", "link", "hard link", "..", "folder's link", "link to a link")
spellings = st.tuples(
    st.integers(0, FILES - 1),
    st.sampled_from(KINDS),
    st.sampled_from(["train", "test"]),
    st.sets(st.sampled_from(["cat", "dog"])).map(frozenset),
)


def path_to(folder: Path, file: int, kind: str, number: int) -> Path:
    """Another way to the file."""
    target, new = folder / "files" / f"{file}.png", folder / f"new{number}"
    if kind == "link":
        new.symlink_to(target)
    elif kind == "hard link":
        os.link(target, new)
    elif kind == "..":
        return folder / "files" / ".." / "files" / target.name
    elif kind == "folder's link":
        new.symlink_to(target.parent)
        return new / target.name
    elif kind == "link to a link":
        (folder / f"first{number}").symlink_to(os.path.relpath(target, folder))
        new.symlink_to(folder / f"first{number}")
    else:
        return target
    return new


@given(st.lists(spellings, min_size=1, max_size=8))
def test_a_file_is_one_image_whatever_leads_to_it(listed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        for file in range(FILES):
            (folder / "files" / f"{file}.png").write_bytes(b"the same")
        paths = [str(path_to(folder, file, kind, number)) for number, (file, kind, *_) in enumerate(listed)]
        splits, held = defaultdict(set), defaultdict(set)
        for file, _, split, categories in listed:
            splits[file].add(split)
            held[file] |= categories
        used = {file for file in splits if "test" in splits[file] or "dog" in held[file]}
        # a training image that is used only under the path that says dog leaks as well, and one that is not used never
        annotated = [
            AnnotatedImage(path, categories, split)
            for path, (_, _, split, categories) in zip(paths, listed, strict=True)
        ]
        try:
            samples = make_samples(annotated, {"dog"})
            samples = one_row_a_file(samples, find_files(samples["image_path"]))
        except ValueError as error:
            message = str(error)
            assert "would leak" in message
            assert any(len(found) == 2 for found in splits.values())
            return
        found = {int(Path(os.path.realpath(p)).stem) if not _is_hard(p) else None for p in samples["image_path"]}
        inodes = [os.stat(path).st_ino for path in samples["image_path"]]  # noqa: PTH116
        assert len(set(inodes)) == len(inodes) == len(used)
        assert found - {None} <= used
        by_inode = {os.stat(folder / "files" / f"{file}.png").st_ino: file for file in range(FILES)}  # noqa: PTH116
        for row, inode in zip(samples.itertuples(), inodes, strict=True):
            file = by_inode[inode]
            if splits[file] == {"test"}:
                assert row.label == ("normal" if "dog" in held[file] else "novel")
                assert row.categories == "; ".join(sorted(held[file]))


def _is_hard(path: str) -> bool:
    return Path(path).stat().st_nlink > 1


contents = st.builds(
    lambda start, length, last: start + bytes(length) + last,
    st.sampled_from([b"", b"a", b"b"]),
    st.sampled_from([0, 1, 4096, 8192, 8193, 20_000]),
    st.sampled_from([b"", b"a", b"b"]),
)


@given(st.lists(contents, max_size=8), st.integers(0, 20_000))
def test_files_are_equal_if_their_bytes_are(written, place):
    written = [
        *written,
        *(content[:place] + b"!" + content[place + 1 :] for content in written),
    ]  # differ in the middle
    with tempfile.TemporaryDirectory() as folder:
        expected = defaultdict(set)
        for number, content in enumerate(written):
            path = Path(folder, f"{number}.png")
            path.write_bytes(content)
            expected[content].add(str(path))
        groups = equal_files(find_files(str(path) for path in Path(folder).iterdir()).values())
    assert {frozenset(group) for group in groups} == {frozenset(paths) for paths in expected.values() if len(paths) > 1}


def test_what_it_costs(tmp_path, monkeypatch):
    """One stat for each path; only files of equal size are opened, only those that begin and end alike are read."""
    for number in range(50):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]) * (100 + number // 2 if number < 40 else 30_000))
    (tmp_path / "copy.png").write_bytes((tmp_path / "49.png").read_bytes())
    calls = defaultdict(int)

    def count(module, name):
        original = getattr(module, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    for name in ("_ends", "_whole"):
        count(equal, name)
    count(os, "stat")
    files = find_files(str(tmp_path / name) for name in os.listdir(tmp_path))  # noqa: PTH208
    assert calls == {"stat": 51}
    assert len(equal_files(files.values())) == 1
    assert (calls["_ends"], calls["_whole"]) == (51, 2)
