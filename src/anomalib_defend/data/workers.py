"""How many processes read images, where the user does not say."""

import os


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


NUM_WORKERS = min(8, usable_cores())
"""Default of the datamodules; each worker is a process with a memory of its own."""
