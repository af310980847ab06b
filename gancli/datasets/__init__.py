"""Data sets: one file per kind, all behind the contract in `base`."""
