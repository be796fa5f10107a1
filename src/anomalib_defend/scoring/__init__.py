"""``anomalib-defend score``: any number of images in constant memory, as fast as the machine allows, and resumable.

Reading order: `inputs` (which images), `images` (from file to pixels), `runtime` (OpenVINO), `resizes` (what is left
out of a graph), `exported` and `checkpoint` (from pixels to a scored batch), `models` (which of them, and that of the
first view), `judges` (from images to rows), `pictures`, `pipeline` (all of it at once), `journal` (rows on disk, which
a killed run goes on from), `finish` (the table), `tally`, `sample`, `undecided` and `validity` (what is said of all
images), `run` (the command). `remote` knows other file systems than the local one; `partitions` and `cluster` are the
same on many machines.
"""
