"""``python -m anomalib_defend`` is ``anomalib-defend``."""

import sys

from anomalib_defend.commands import main

if __name__ == "__main__":
    sys.exit(main())
