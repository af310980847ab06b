"""Generators and discriminators: one file per family, their shared parts in `layers`."""
