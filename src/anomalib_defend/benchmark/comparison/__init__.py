"""Compare models: a YAML file becomes cells (model x data x category x seed), their CSV files become a report.

The files read in this order: plan (YAML -> cells), build (objects; bad input refused), cell (one cell in its own
process, by anomalib's benchmark pipeline), results (a cell's folder), budget (time), driver (all cells); and then
statistics, papers, report, plots.
"""
