"""Tables of a comparison: every figure against scikit-learn or by hand, nothing dropped silently."""

import json
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from sklearn.metrics import roc_auc_score

from anomalib_defend.benchmark.images import wrong_shares
from anomalib_defend.benchmark.papers import figures, notes
from anomalib_defend.benchmark.plan import ComparisonError
from anomalib_defend.benchmark.plots import save_plots
from anomalib_defend.benchmark.report import markdown
from anomalib_defend.benchmark.statistics import difference, pair
from anomalib_defend.benchmark.table import Table
from anomalib_defend.commands import main
from anomalib_defend.decision.ranking import auroc
from comparisons import make_scores, write_results


@pytest.fixture
def results(tmp_path):
    return partial(write_results, tmp_path)


def test_auroc_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, 20, 300) / 7  # with many ties
    assert auroc(labels, scores)[0] == pytest.approx(roc_auc_score(labels, scores))
    weights = rng.integers(0, 4, (5, 300)).astype(float)
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    assert auroc(labels, scores, weights) == pytest.approx(expected)


def test_auroc_of_one_label_is_nan():
    assert np.isnan(auroc(np.ones(3), np.arange(3.0))[0])


def test_identical_models_have_no_interval():
    pairs = [pair(make_scores(seed, 1), make_scores(seed, 1)) for seed in range(3)]
    found = difference(pairs)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.clear


def test_a_clearly_better_model_is_clear_of_zero():
    ours, theirs = make_scores(0, 3), make_scores(1, 0.2)
    found = difference([pair(ours, theirs)])
    expected = roc_auc_score(ours.label, ours.score) - roc_auc_score(theirs.label, theirs.score)
    assert found.mean == pytest.approx(expected)
    assert 0 < found.low < found.mean < found.high
    assert found.clear
    mirrored = difference([pair(theirs, ours)])
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_two_models_of_the_same_quality_are_not():
    found = difference([pair(make_scores(0, 1), make_scores(1, 1))])
    assert found.low < 0 < found.high


def test_the_interval_is_that_of_a_plain_bootstrap(monkeypatch):
    monkeypatch.setattr("anomalib_defend.benchmark.statistics.REPLICATES", 16000)
    ours, theirs = make_scores(0, 1.5, 80), make_scores(1, 1, 80)
    rng = np.random.default_rng(1)
    groups = [np.flatnonzero(ours.label == label) for label in (0, 1)]
    both = [(table.label.to_numpy(), table.score.to_numpy()) for table in (ours, theirs)]
    plain = []
    for _ in range(8000):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        plain.append(np.subtract(*(auroc(labels[drawn], scores[drawn])[0] for labels, scores in both)))
    found = difference([pair(ours, theirs)])
    assert (found.low, found.high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.01)


def test_the_same_images_in_several_seeds_do_not_narrow_the_interval():
    """Three seeds with the same scores say no more about the test images than one."""
    one = pair(make_scores(0, 1.5), make_scores(1, 1))
    three, alone = difference([one, one, one]), difference([one])
    assert (three.low, three.high) == pytest.approx((alone.low, alone.high))


def test_the_order_of_the_images_does_not_matter():
    ours, theirs = make_scores(0, 1.5), make_scores(1, 1)
    assert difference([pair(ours, theirs.sample(frac=1, random_state=0))]) == difference([pair(ours, theirs)])


def test_the_tables_figures(results):
    scores = {
        (model, category, seed): make_scores(number, shift)
        for number, (model, category, seed, shift) in enumerate(
            (model, category, seed, shift)
            for model, shift in (("DN2", 1), ("A", 3))
            for category in ("dog", "cat")
            for seed in (0, 1)
        )
    }
    folder = results(scores, papers={"VOC": "VOC uni-class"})
    table = Table([folder])
    by_hand = {key: roc_auc_score(found.label, found.score) for key, found in scores.items()}
    dog = [by_hand["A", "dog", 0], by_hand["A", "dog", 1]]
    assert table.values("A", "VOC", "dog") == pytest.approx(dog)
    both = [np.mean([by_hand["A", name, seed] for name in ("dog", "cat")]) for seed in (0, 1)]
    assert table.values("A", "VOC", "mean") == pytest.approx(both)
    expected = np.mean([by_hand["A", name, s] - by_hand["DN2", name, s] for name in ("dog", "cat") for s in (0, 1)])
    assert table.difference("A", "VOC", "mean").mean == pytest.approx(expected)
    text = markdown(table)
    assert f"| VOC | dog | {_text(by_hand, 'DN2', 'dog')} | {_text(by_hand, 'A', 'dog')} |" in text
    ours = f"{_mean_text(by_hand, 'DN2')} | {_mean_text(by_hand, 'A')}"
    assert f"| mean | {ours} | 0.954 |" in text.partition("papers' own figures")[2]
    assert f"| dog | {_text(by_hand, 'DN2', 'dog')} | {_text(by_hand, 'A', 'dog')} | 0.919 |" in text
    below = text.partition("papers' own figures")[2].partition("##")[0]
    assert "Defend: ViT-B/16 pretrained with labels on ImageNet-21k" in below
    assert "KDAD*: VGG-16 on images in [0, 1], not normalised" in below
    assert "KDAD*; MSAD*; Transformaly*; Deep SVDD*: the star marks" in below
    assert "| VOC | A | 10 s | 20.0 | 5.0 M | 1.0 GB |" in text
    assert "0.900 ± 0.000" in text.partition("## Pixel AUROC")[2]
    assert "Failed" not in text


def _text(by_hand, model, category):
    values = [by_hand[model, category, seed] for seed in (0, 1)]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _mean_text(by_hand, model):
    values = [np.mean([by_hand[model, name, seed] for name in ("dog", "cat")]) for seed in (0, 1)]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def test_failed_and_missing_cells_are_shown(results, capsys):
    scores = {("DN2", "dog", 0): make_scores(0, 1), ("DN2", "dog", 1): make_scores(1, 1)}
    scores |= {("A", "dog", 0): "ValueError: no | such\nthing", ("A", "dog", 1): make_scores(2, 2)}
    scores |= {("A", "cat", 0): None, ("DN2", "cat", 0): make_scores(3, 1)}
    folder = results(scores)
    assert main(["benchmark", "report", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "5 of 6 cells" not in text
    assert "4 of 6 cells are finished" in text
    assert ", 1 failed |" in text
    assert "| 1 missing |" in text
    assert r"| A | VOC | dog | 0 | failed, ValueError: no \| such thing |" in text
    assert "| A | VOC | cat | 0 | not run with these settings |" in text


def test_results_of_other_settings_are_missing(results):
    folder = results({("DN2", "dog", 0): make_scores(0, 1)})
    [file] = folder.glob("*/result.json")
    file.write_text(file.read_text().replace('"key": "', '"key": "0'))
    assert "1 missing" in markdown(Table([folder]))


def test_other_test_images_are_not_compared(results):
    other = make_scores(0, 1).assign(image_path=lambda table: "/elsewhere" + table.image_path)
    table = Table([results({("DN2", "dog", 0): make_scores(0, 1), ("A", "dog", 0): other})])
    assert table.difference("A", "VOC", "dog") == "other test images"


def test_a_metric_that_was_clamped_is_told(results):
    folder = results({("DN2", "dog", 0): make_scores(0, 1)})
    [file] = folder.glob("*/result.json")
    content = json.loads(file.read_text())
    content["row"]["image_AUROC"] -= 0.05
    file.write_text(json.dumps(content))
    assert "deviates by up to -0.050" in markdown(Table([folder]))


def test_the_hardest_novel_class_is_a_folder(results):
    found = make_scores(0, 1)
    classes = np.where(found.label == 1, np.where(np.arange(200) % 8 == 0, "truck", "apple"), "cat")
    found["image_path"] = [f"/data/{name}/{number}.png" for number, name in enumerate(classes)]
    folder = results({("DN2", "cat", 0): found}, by_novel_class=["VOC"], papers={"VOC": "CIFAR-10 against CIFAR-100"})
    name, hardest = _hardest(found, {each: (found.label == 1) & (classes == each) for each in ("truck", "apple")})
    text = markdown(Table([folder]))
    assert f"| VOC | cat | {name} {hardest:.3f} |" in text.partition("## Hardest novel class")[2]
    # the papers have the mean alone
    assert f"| mean | {hardest:.3f} |  | 0.900 | 0.900 |" in text.partition("figures, hardest novel class")[2]


def test_the_hardest_novel_class_is_a_category_that_images_show(results):
    """Over two seeds; a category of a few images is not called the hardest, whatever its AUROC."""
    seeds = []
    for seed in (0, 1):
        found = make_scores(seed, 1)
        novel = found.label == 1
        names = {"cow": np.arange(200) % 8 == 0, "van": np.arange(200) % 12 == 0, "few": np.arange(200) < 8}
        found["categories"] = ["; ".join(name for name in names if names[name][row]) for row in range(200)]
        found.loc[names["few"] & novel, "score"] = -9.0
        seeds.append((found, {name: novel & names[name] for name in ("cow", "van")}))
    folder = results({("DN2", "cat", seed): found for seed, (found, _) in enumerate(seeds)})
    each = [{name: _auroc_of(found, part) for name, part in members.items()} for found, members in seeds]
    means = {name: np.mean([one[name] for one in each]) for name in ("cow", "van")}
    name = min(means, key=means.get)
    assert f"| VOC | cat | {name} {means[name]:.3f} |  |" in markdown(Table([folder]))


def _auroc_of(found, members):
    part = found[(found.label == 0) | members]
    return roc_auc_score(part.label, part.score)


def _hardest(found, members):
    return min(((name, _auroc_of(found, part)) for name, part in members.items()), key=lambda item: item[1])


def test_false_alarms_and_misses(results):
    scores = {}
    for number, (category, seed) in enumerate([("dog", 0), ("dog", 1), ("cat", 0), ("cat", 1)]):
        found = make_scores(number, 2)
        scores["DN2", category, seed] = found.assign(called=(found.score > 1).astype(int))
        scores["A", category, seed] = make_scores(number, 2)  # as older versions left it
    text = markdown(Table([results(scores)])).partition("## False alarms and misses")[2]
    rates = {}
    for category in ("dog", "cat"):
        both = pd.concat([scores["DN2", category, seed] for seed in (0, 1)])
        alarms = int(((both.label == 0) & (both.score > 1)).sum())
        misses = int(((both.label == 1) & (both.score <= 1)).sum())
        rates[category] = alarms / 300, misses / 100
        row = f"{alarms / 3:.1f} % ({alarms} of 300), {misses:.1f} % ({misses} of 100)"
        assert f"| VOC | {category} | {row} | not recorded |" in text
    together = [100 * np.mean([rates[name][part] for name in rates]) for part in (0, 1)]
    assert f"| VOC | mean | {together[0]:.1f} %, {together[1]:.1f} % |  |" in text


def test_cells_of_older_versions_are_reported(results):
    text = markdown(Table([results({("DN2", "dog", 0): make_scores(0, 1)})]))
    assert "Not recorded: these cells were finished by an older version" in text
    assert "Not known: the data name no categories" in text


@pytest.mark.parametrize(
    ("shifts", "words"),
    [
        (
            {"A": 3, "B": 2},
            r"VOC: A is best with a mean AUROC over 2 categories of 0\.\d+, \+0\.\d+ \[\+.*DN2, clear of zero\.",
        ),
        ({"A": 1.05}, r"VOC: A is best .*, \+.* \[-.*, not clear of zero\."),
        ({"A": 0.1, "B": 0.8}, r"VOC: the reference DN2 is best .* the next, B, differs by -.*, clear of zero\."),
        ({}, r"VOC: DN2 has a mean AUROC over 2 categories of 0\.\d+, and there is no other model"),
    ],
)
def test_the_verdict(results, shifts, words):
    noise = np.random.default_rng(0).normal(size=200)
    slight = np.random.default_rng(1).normal(size=200) / 2
    scores = {("DN2", name, 0): make_scores(0, 1, noise=noise) for name in ("dog", "cat")}
    scores |= {
        (model, name, 0): make_scores(0, shift, noise=noise + slight)
        for model, shift in shifts.items()
        for name in ("dog", "cat")
    }
    text = markdown(Table([results(scores, models=("DN2", *shifts))]))
    assert re.search(words, text)


def test_the_verdict_without_pairs(results):
    text = markdown(Table([results({("DN2", "dog", 0): make_scores(0, 1), ("A", "dog", 0): None})]))
    assert "Not yet told, for want of a model that was tested on the same images as DN2 in all categories: VOC." in text


def test_how_wrong_each_score_is():
    found = make_scores(0, 1).round(1)  # with ties
    shares = wrong_shares(found.label.to_numpy(), found.score.to_numpy())
    for label in (0, 1):
        assert shares[found.label == label].mean() == pytest.approx(1 - roc_auc_score(found.label, found.score))
    assert wrong_shares(np.array([0, 0, 1]), np.array([0.0, 2.0, 1.0])).tolist() == [0, 1, 0.5]


def test_the_papers_figures_are_auroc():
    assert figures("CIFAR-10 splits")["Defend"]["01234"] == pytest.approx(0.947)
    with pytest.raises(ValueError, match="unknown table 'CIFAR'"):
        figures("CIFAR")
    with pytest.raises(ValueError, match="unknown table 'notes'"):
        figures("notes")


def test_what_is_said_below_a_table_is_of_its_methods():
    of_coco, of_splits = "\n".join(notes("COCO uni-class")), "\n".join(notes("CIFAR-10 splits"))
    assert "MSAD*: no figures by category: the paper's column repeats" in of_coco
    assert "FCDD; FCDD+OE; PANDA; KDAD: runs by the authors of UniAD" in of_splits
    assert "not normalised" in of_coco
    assert "not normalised" not in of_splits


def test_a_cell_in_several_folders_counts_once(results):
    folder = results({("DN2", "dog", 0): make_scores(0, 1), ("A", "dog", 0): make_scores(1, 2)})
    assert markdown(Table([folder, folder])) == markdown(Table([folder]))


def test_no_results(tmp_path, capsys):
    assert main(["benchmark", "report", str(tmp_path)]) == 1
    assert "holds no results" in capsys.readouterr().err


def test_the_ending_says_what_is_written(results, tmp_path, capsys):
    folder = results({("DN2", "dog", 0): make_scores(0, 1)})
    out = tmp_path / "new" / "table.md"
    assert main(["benchmark", "report", str(folder), "--out", str(out)]) == 0
    assert f"Written: {out}" in capsys.readouterr().out
    assert out.read_text() == markdown(Table([folder]))
    assert main(["benchmark", "report", str(folder), "--out", str(out.with_suffix(".pdf"))]) == 1
    assert "table.pdf must end with .html or .md" in capsys.readouterr().err
    assert not out.with_suffix(".pdf").exists()


def test_another_reference(results):
    folder = results({("DN2", "dog", 0): make_scores(0, 1), ("A", "dog", 0): make_scores(1, 2)})
    other = Table([folder], "A")
    assert other.difference("DN2", "VOC", "dog").mean == -Table([folder]).difference("A", "VOC", "dog").mean
    assert "## Paired difference to A" in markdown(other)
    with pytest.raises(ComparisonError, match="--reference B: there is no such model, only DN2, A"):
        Table([folder], "B")


def test_plots_tell_more_than_ten_models_apart(tmp_path, monkeypatch):
    models = ("DN2", *(f"M{number}" for number in range(12)))
    write_results(tmp_path, {(model, "dog", 0): make_scores(0, 1) for model in models}, models, ("dog",), (0,))
    looks = []
    scatter = Axes.scatter
    monkeypatch.setattr(
        Axes,
        "scatter",
        lambda *args, **kwargs: looks.append((kwargs["color"], kwargs["marker"])) or scatter(*args, **kwargs),
    )
    assert len(save_plots(Table([tmp_path]), tmp_path / "plots")) == 3
    assert len(set(looks)) == len(models)
