"""The epochs that the model's and the trainer's arguments make together."""

from __future__ import annotations

from anomalib_defend.models.components.arguments import UNSET_MAX_EPOCHS


def plan_epochs(dense: int, distill: int, max_epochs: int | None, other_limit: bool = False) -> int:
    """Number of epochs to train: both stages, or fewer of stage 2 if the trainer's own limit says so.

    Lightning puts 1000 in for no value, and -1 where another limit (steps, time) is given: neither is the user's.

    Raises:
        ValueError: If the trainer's limit would cut stage 2 off, or asks for more epochs than the stages have.
    """
    total = dense + distill
    if max_epochs in {UNSET_MAX_EPOCHS, total} or (other_limit and max_epochs in {None, -1}):
        return total
    if max_epochs is None or not dense < max_epochs < total:
        msg = (
            f"trainer.max_epochs={max_epochs} does not fit dense_epochs={dense} + distill_epochs={distill}: leave it "
            f"out, or set it to a number from {dense + 1} to {total} to stop early. For more epochs, raise "
            "model.distill_epochs."
        )
        raise ValueError(msg)
    return max_epochs
