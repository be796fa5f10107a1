"""Whatever was called before, however it ended: a training has the bits of a fresh model's."""

import contextlib
from itertools import count
from pathlib import Path

import pytest
import torch
from calls import MORE_CALLS
from every_model import ROWS, differing, make_data, make_engine, state_of
from hypothesis import given
from hypothesis import strategies as st

MODELS = {name: next(row for row in ROWS if row.name == name) for name in ("Defend_attended", "ARNet", "MeanFeature")}

numbers = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    make_data(folder / "images")
    return folder


@pytest.fixture(scope="module")
def fresh(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What a fresh model of each kind ends with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anomalib_defend.nn.dense_prototypes.HIDDEN_DIM", 32)  # as in the tests
        return {name: fitted(row.build(), folder) for name, row in MODELS.items()}


def fitted(model, folder: Path):
    make_engine(folder / str(next(numbers))).fit(model, datamodule=make_data(folder / "images"))
    return state_of(model)


@pytest.mark.slow
@given(name=st.sampled_from(sorted(MODELS)), calls=st.lists(st.sampled_from(MORE_CALLS), min_size=2, max_size=3))
def test_a_training_after_any_calls_is_that_of_a_fresh_model(folder: Path, fresh, name: str, calls) -> None:
    data = make_data(folder / "images")
    model = MODELS[name].build(chance=1)
    for call in calls:
        with contextlib.suppress(RuntimeError):  # untrained, it is refused, which may leave nothing behind, either
            call(model, folder / str(next(numbers)), data)
    assert not differing(fresh[name], fitted(model, folder))
