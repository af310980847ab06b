"""Image grids, plots, and HTML pages."""
