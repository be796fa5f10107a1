"""The papers are named and linked where somebody would look for them."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from anomalib_defend import models
from documents import ROOT

OWN = {"ObjectPrototypes"}  # this package's own: its page says so, and there is nothing to cite
LINK = re.compile(r"https://(?:arxiv\.org/abs/\d{4}\.\d{4,5}|proceedings\.mlr\.press/[\w/]+\.html)")
BIBTEX = re.compile(r"```bibtex\n(@\w+\{\w+,\n.+?\n\})\n```", re.DOTALL)


def page(name: str) -> str:
    return (Path(inspect.getfile(getattr(models, name))).parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(models.__all__) - OWN))
def test_docstring_and_page_of_a_model_name_its_paper(name: str) -> None:
    source = (getattr(models, name).__doc__ or "").partition("Source: ")[2]
    (link, *_) = LINK.findall(source)
    assert link in page(name).partition("##")[0]
    (entry,) = BIBTEX.findall(page(name))
    author = re.findall(r"author = \{([\w-]+), ", entry)[0]
    assert author in source
    assert re.search(r"year = \{\d{4}\}", entry)


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_model_of_this_package_says_so(name: str) -> None:
    assert "This package's own" in page(name)


def test_the_readme_cites_the_method() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    assert BIBTEX.findall(readme) == BIBTEX.findall(page("Defend"))
    assert f"doi = {{{paper['doi']}}}" in readme
    assert paper["identifiers"][0]["value"].replace("arXiv:", "https://arxiv.org/abs/") in LINK.findall(readme)
