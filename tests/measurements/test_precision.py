"""Paired trainings are compared pair by pair, and are not run twice."""

import json

from measurements import precision


def make_cell(seed, trained, **aurocs):
    return {"dense_epochs": 0, "seed": seed, **precision.TRAININGS[trained], **({"auroc": aurocs} if aurocs else {})}


def test_differences_are_paired_by_seed():
    results = [
        make_cell(0, "32", **{"32": 0.7, "bf16-mixed": 0.71}),
        make_cell(0, "bf16-mixed", **{"32": 0.72, "bf16-mixed": 0.73}),
        make_cell(1, "32", **{"32": 0.9, "bf16-mixed": 0.89}),
        make_cell(1, "bf16-mixed", **{"32": 0.88, "bf16-mixed": 0.86}),
    ]
    assert "a cache" not in precision.report(results)
    results += [make_cell(seed, "32, no cache", **{"32": 0.6, "bf16-mixed": 0.5}) for seed in (0, 1)]
    lines = precision.report(results).splitlines()
    both, training, testing, cache = (
        next(line for line in lines if line.startswith(f"| {name} |")) for name in precision.PAIRS
    )
    assert "| +0.2000 | 0.1414 | +0.3000 |" in cache
    assert "| -0.0050 | 0.0495 | -0.0400 | 0.1414 |" in both
    assert "| +0.0000 | 0.0283 |" in training
    assert "| +0.0000 | 0.0141 |" in testing


def test_finished_trainings_are_not_run_again(tmp_path, monkeypatch):
    out = tmp_path / "new" / "precision.jsonl"
    cells = [make_cell(0, "32"), make_cell(0, "32, no cache")]
    monkeypatch.setattr(precision, "in_fresh_process", lambda _function, cell: {**cell, "auroc": {"32": 0.5}})
    assert len(precision.run_missing(cells[:1], out)) == 1
    monkeypatch.setattr(precision, "in_fresh_process", lambda _function, cell: {**cell, "auroc": {"32": 0.6}})
    assert [result["auroc"]["32"] for result in precision.run_missing(cells, out)] == [0.5, 0.6]
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 2
