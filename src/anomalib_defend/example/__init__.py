"""The embedded example: multi-object scenes of real handwritten digits in Pascal VOC layout.

``scenes`` composes and writes them, ``encoder`` makes the example's tiny teacher known to timm, ``pretrain`` trains it
on other digits than theirs; ``anomalib-defend example`` writes the scenes from the command line.
"""
