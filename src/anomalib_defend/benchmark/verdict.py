"""The outcome of a comparison in one sentence, from the paired intervals."""

from __future__ import annotations

from statistics import mean

from .statistics import Difference
from .table import MEAN, Table


def verdict(table: Table) -> str:
    """Which model is best on each data, and whether its paired difference to the reference is clear of zero."""
    sentence = "; ".join(_clause(table, data) for data in table.comparison.data) or "nothing was planned"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _clause(table: Table, data: str) -> str:
    """The last row of some data: the mean over its categories, or its only one."""
    reference, row = table.comparison.reference, table.last_row(data)
    what = f"mean AUROC over {len(table.categories(data))} categories" if row == MEAN else "AUROC"
    own = table.values(reference, data, row)
    others = [name for name in table.comparison.models if name != reference]
    found = {name: table.difference(name, data, row) for name in others}
    known = {name: value for name, value in found.items() if isinstance(value, Difference)}
    if own and not others:
        return f"on {data} {reference} has {what} {mean(own):.3f}, and there is no other model to compare it with"
    if not own or not known:
        return f"on {data} no model has been tested on the same images as {reference}, in all categories"
    best = max(known, key=lambda name: known[name].mean)
    difference = known[best]
    words = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    clear = "clear of zero" if difference.clear else "not clear of zero"
    if difference.mean <= 0:
        return (
            f"on {data} the reference {reference} is best with {what} {mean(own):.3f}, and the next, {best}, differs "
            f"by {words}, {clear}"
        )
    return (
        f"on {data} {best} is best with {what} {mean(table.values(best, data, row)):.3f}, {words} against the "
        f"reference {reference}, {clear}"
    )
