"""One self-contained page, and a model card, from what a bundle holds: no network, no path, no full-size photo.

Light to import: `edgetl inspect --layers` reads `report.xray`. The command calls `report.stage`.
"""
