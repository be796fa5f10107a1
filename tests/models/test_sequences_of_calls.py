"""Whatever was called before, however it ended: a training has the bits of a fresh model's."""

import contextlib
from itertools import count
from pathlib import Path

import pytest
import torch
from calls import MORE_CALLS, moved_threshold
from every_model import ROWS, arguments_of, differing, make_data, make_engine, state_of
from hypothesis import given
from hypothesis import strategies as st

MODELS = {name: next(row for row in ROWS if row.name == name) for name in ("Defend_attended", "ARNet", "MeanFeature")}

numbers = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    data_in(folder)
    return folder


def data_in(folder: Path):
    """With several images to validate: of one, every rate has the same threshold."""
    return make_data(folder / "images", val_split_ratio=0.5)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> dict[tuple[str, bool], dict[str, torch.Tensor]]:
    """What a fresh model of each kind ends with, validated or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anomalib_defend.nn.dense_prototypes.HIDDEN_DIM", 32)  # as in the tests
        return {
            (name, validates): fitted(row.build(), folder, validates)
            for name, row in MODELS.items()
            for validates in (True, False)
        }


def fitted(model, folder: Path, validates: bool):
    options = {} if validates else {"limit_val_batches": 0}
    make_engine(folder / str(next(numbers)), **options).fit(model, datamodule=data_in(folder))
    return state_of(model)


def test_the_threshold_moves(fresh, folder: Path) -> None:
    """Else nothing could be left of it."""
    model = MODELS["MeanFeature"].build()
    state = fitted(model, folder, validates=True)
    moved_threshold(model, folder, None)
    assert "post_processor._image_threshold" in differing(state, state_of(model))


@pytest.mark.slow
@given(
    name=st.sampled_from(sorted(MODELS)),
    calls=st.lists(st.sampled_from(MORE_CALLS), min_size=2, max_size=3),
    validates=st.booleans(),
)
def test_a_training_after_any_calls_is_that_of_a_fresh_model(folder: Path, fresh, name: str, calls, validates) -> None:
    data = data_in(folder)
    model = MODELS[name].build(chance=1)
    own = arguments_of(model)
    for call in calls:
        with contextlib.suppress(RuntimeError):  # untrained, it is refused, which may leave nothing behind, either
            call(model, folder / str(next(numbers)), data)
    assert not differing(fresh[name, validates], fitted(model, folder, validates))
    assert arguments_of(model) == own
