"""``anomalib-defend threshold``: tell, move or compute anew the threshold of a checkpoint or an exported model."""

from anomalib_defend.decision.command import add_arguments, run

__all__ = ["add_arguments", "run"]
