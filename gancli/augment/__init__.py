"""Augmentation of the discriminator's inputs, real and generated, for small data sets."""
