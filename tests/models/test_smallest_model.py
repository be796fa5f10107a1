"""A model writes only its own: `test_every_model.py` holds the one that docs/adding_a_model.md shows to its list."""

import re
from pathlib import Path

import smallest_model
from every_model import ROWS

SOURCE = Path(smallest_model.__file__).read_text(encoding="utf-8")


def test_it_has_at_most_forty_lines():
    assert len([line for line in SOURCE.splitlines() if line]) <= 40


def test_it_is_held_to_the_list():
    assert [row.public for row in ROWS if row.model is smallest_model.MeanFeature] == [False]


def test_the_page_shows_it():
    text = (Path(__file__).parents[2] / "docs" / "adding_a_model.md").read_text(encoding="utf-8")
    assert re.findall("```python\n(.*?)```", text, re.DOTALL) == [SOURCE]
