"""What the test images of a cell tell: novel classes, false alarms and misses, and how wrong each score is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from anomalib_defend.data.protocol import SEPARATOR
from anomalib_defend.decision.ranking import auroc

LEAST_NOVEL = 10
"""Novel images without which a category's AUROC is too uncertain to be called the hardest."""


class NovelClass(NamedTuple):
    """A class of novel images: name, AUROC of all normal images against its images, and how many these are."""

    name: str
    auroc: float
    images: int


class Called(NamedTuple):
    """False alarms among the normal images, and misses among the novel ones."""

    alarms: int
    normal: int
    misses: int
    novel: int


def novel_classes(scores: pd.DataFrame, by_folder: bool) -> dict[str, NovelClass]:
    """AUROC of all normal images against each class of novel ones, by its name; empty where classes are not known.

    Args:
        scores: Of a cell's test images, as ``results.Result`` has them.
        by_folder: A class is a folder of images, however few; else a category that at least ``LEAST_NOVEL`` novel
            images show, perhaps beside others.
    """
    normal = (scores["label"] == 0).to_numpy()
    return {
        name: NovelClass(name, _auroc(scores[normal | members]), int(members.sum()))
        for name, members in (_by_folder if by_folder else _by_category)(scores, ~normal)
    }


def _auroc(part: pd.DataFrame) -> float:
    return float(auroc(part["label"].to_numpy(), part["score"].to_numpy())[0])


def _by_folder(scores: pd.DataFrame, novel: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    folders = scores["image_path"].map(lambda path: Path(path).parent)
    for folder in folders[novel].unique():
        yield folder.name, novel & (folders == folder).to_numpy()


def _by_category(scores: pd.DataFrame, novel: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if "categories" not in scores:
        return
    shown = [set(filter(None, text.split(SEPARATOR))) for text in scores["categories"]]
    for name in sorted(set().union(*shown)):
        members = novel & np.array([name in names for names in shown])
        if members.sum() >= LEAST_NOVEL:
            yield name, members


def called(scores: pd.DataFrame) -> Called | None:
    """False alarms and misses at the model's threshold; None where it is not recorded what images are called."""
    if "called" not in scores or scores["called"].isna().any():
        return None
    novel, judged = (scores["label"] == 1).to_numpy(), (scores["called"] == 1).to_numpy()
    return Called(*(int(part.sum()) for part in (judged & ~novel, ~novel, ~judged & novel, novel)))


def wrong_shares(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How wrong each image's score is, whatever the threshold.

    Args:
        labels: (N,), 1: novel.
        scores: (N,), higher is more novel.

    Returns:
        (N,): of a normal image, the share of the novel ones that score lower; of a novel image, the share of the normal
        ones that score higher. Ties count half. The mean over the normal images, and over the novel ones, is 1 - AUROC.
    """
    shares = np.empty(len(scores))
    for label, sign in ((0, 1.0), (1, -1.0)):
        mine, others = sign * scores[labels == label], np.sort(sign * scores[labels != label])
        below, up_to = (np.searchsorted(others, mine, side) for side in ("left", "right"))
        shares[labels == label] = (below + up_to) / 2 / len(others)
    return shares
