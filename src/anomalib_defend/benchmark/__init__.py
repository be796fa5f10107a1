"""Programs that print the documentation's figures: ``python -m anomalib_defend.benchmark.NAME``."""
