"""The embedded example: multi-object scenes of real handwritten digits in Pascal VOC layout.

``scenes`` composes and writes them, ``pretrain`` trains the example's tiny teacher on other digits than theirs;
``anomalib-defend example`` writes the scenes from the command line.
"""
