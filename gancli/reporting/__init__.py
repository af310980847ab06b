"""Pictures and pages: image grids, plots with axes, and HTML."""
