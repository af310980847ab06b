"""Training: the loop, what it logs, measures and saves, and the run folder that it writes."""
