"""What a set of samples is worth: one file per family of metrics, all behind the contract in `base`."""
