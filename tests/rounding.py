"""How far two ways to compute the same numbers in float32 may be apart: it follows from the arithmetic alone.

Another batch size, another instruction set or another number of threads sums in another order.
"""

import torch


def rounding(operations: int, largest: float = 1.0) -> float:
    """After so many roundings one after the other (layers, steps, terms of a sum), of numbers up to ``largest``."""
    return operations * torch.finfo(torch.float32).eps * largest


A_SHARE_OF_ADAMS_STEP = 0.1
"""Adam divides a gradient by its size: where it is all rounding (an attention's key bias), that moves weights."""
