"""How fast training and inference are, beside the published procedure and beside what the machine could do.

``python -m measurements.speed --quick --json FILE``

Reading order: `reference` (the published procedure), then the parts: `training`, `memory`, `inference` (of `exports`),
`peers`, `data`, `ddp`, `scaling`, `jobs`. Below them: `networks`, `operations` (what must be computed), `machine` (how
fast that could be), `timing`, `report`.
"""
