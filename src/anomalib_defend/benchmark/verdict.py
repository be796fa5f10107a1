"""The outcome of a comparison in one sentence, from the paired intervals."""

from __future__ import annotations

from statistics import mean

from .statistics import Difference
from .table import MEAN, Table


def verdict(table: Table) -> str:
    """Which model is best on each data, and whether its paired difference to the reference is clear of zero."""
    reference = table.comparison.reference
    clauses = {data: _clause(table, data) for data in table.comparison.data}
    told = [f"{data}: {clause}" for data, clause in clauses.items() if clause]
    untold = [data for data, clause in clauses.items() if not clause]
    if untold:
        told.append(
            f"not yet told, for want of a model that was tested on the same images as {reference} in all categories: "
            f"{' / '.join(untold)}"
        )
    sentence = "; ".join(told)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _clause(table: Table, data: str) -> str:
    """The last row of some data: the mean over its categories, or its only one; empty where nothing can be said."""
    reference, row = table.comparison.reference, table.last_row(data)
    what = f"a mean AUROC over {len(table.categories(data))} categories of" if row == MEAN else "an AUROC of"
    own = table.values(reference, data, row)
    others = [name for name in table.comparison.models if name != reference]
    found = {name: table.difference(name, data, row) for name in others}
    known = {name: value for name, value in found.items() if isinstance(value, Difference)}
    if own and not others:
        return f"{reference} has {what} {mean(own):.3f}, and there is no other model to compare it with"
    if not own or not known:
        return ""
    best = max(known, key=lambda name: known[name].mean)
    difference = known[best]
    words = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    clear = "clear of zero" if difference.clear else "not clear of zero"
    if difference.mean <= 0:
        return (
            f"the reference {reference} is best with {what} {mean(own):.3f}, and the next, {best}, differs by {words}, "
            f"{clear}"
        )
    return (
        f"{best} is best with {what} {mean(table.values(best, data, row)):.3f}, {words} against the reference "
        f"{reference}, {clear}"
    )
