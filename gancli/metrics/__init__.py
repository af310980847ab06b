"""Metrics of generated samples: one file per family, all behind the contract in `base`."""
