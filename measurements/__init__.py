"""Programs that print the documentation's figures, run from the root of a clone: ``python -m measurements.NAME``.

They are no part of the wheel, and the package never imports them.
"""
