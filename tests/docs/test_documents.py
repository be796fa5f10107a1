"""Documents lead where they say, and say what they need."""

import re

from documents import DOCUMENTS, PACKAGE, ROOT, SETTINGS, name


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{name(document)}: {target}"


def test_a_document_that_needs_a_clone_says_so() -> None:
    """Programs of ``measurements`` and the files of ``configs`` are in no wheel."""
    for document in [*DOCUMENTS, *sorted(PACKAGE.rglob("*.yaml"))]:
        text = document.read_text(encoding="utf-8")
        if re.search(r"python -m measurements|--config configs/|--data configs/|\bmake [a-z]", text):
            assert re.search(r"\bclone\b", text), f"{name(document)} does not say that it needs a clone"


def test_words_that_the_fields_own_have_replaced_are_gone() -> None:
    """One meaning a word, and one word a meaning."""
    gone = re.compile(r"\b(landmarks?|of_this_run|own_batches|why_not|yardsticks?)\b")
    programs = [*PACKAGE.rglob("*.py"), *(ROOT / "measurements").rglob("*.py")]
    for file in [*DOCUMENTS, *SETTINGS, *programs]:
        found = gone.search(file.read_text(encoding="utf-8"))
        assert found is None, f"{name(file)}: {found}"


def test_start_here_names_what_every_extra_is_for() -> None:
    described = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", described.partition("\n[")[0], re.MULTILINE)) - {"dev", "docs"}
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert extras
    assert set(told) == extras
