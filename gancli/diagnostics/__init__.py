"""Diagnostics: statements of the theory that are tested on a run, each with numbers, a figure and a sentence."""
