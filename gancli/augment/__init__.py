"""Changes to what the discriminator sees, for when there is little data."""
