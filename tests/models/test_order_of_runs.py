"""Training, test and prediction in one folder, in any order: none spoils the next one, and no table is lost."""

from itertools import count
from pathlib import Path

import pytest
from every_model import ROWS, make_data, make_engine
from hypothesis import given
from hypothesis import strategies as st

TABLES = {"test": "test*.csv", "predict": "predictions*.csv"}
numbers = count()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("runs")
    model = next(row for row in ROWS if row.name == "MeanFeature").build()
    make_engine(folder / "training").fit(model, datamodule=make_data(folder / "images"))
    return model, folder


@pytest.mark.slow
@given(st.lists(st.sampled_from(["fit", "validate", "test", "predict"]), min_size=1, max_size=4))
def test_no_run_spoils_the_next(trained, actions: list[str]) -> None:
    model, folder = trained
    root = Path(folder, str(next(numbers)))
    for action in [*actions, "fit"]:
        getattr(make_engine(root), action)(model, datamodule=make_data(folder / "images"))
    (latest,) = root.rglob("latest")
    assert latest.is_symlink()
    for action, names in TABLES.items():
        tables = [path for path in latest.parent.glob(f"v*/{names}") if not path.parent.is_symlink()]
        assert len(tables) == actions.count(action), action
