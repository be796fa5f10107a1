"""Compare models: a YAML file becomes cells (model x data x category x seed), their CSV files become a report.

``anomalib-defend benchmark run NAME`` and ``report NAME``; ``configs`` holds the YAML files and explains them.

The files read in this order: plan (cells), expand (YAML -> cells), build (objects; bad input refused), cell (one cell
in its own process, by anomalib's benchmark pipeline), machine (what it runs on), results (a cell's folder), budget
(time), driver (all cells); and then statistics, images, papers, table (figures), verdict, report, page, plots.
"""
