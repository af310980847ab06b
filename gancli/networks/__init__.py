"""Generators and discriminators: one module per family, shared layers in `layers`, base classes in `base`."""
