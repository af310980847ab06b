"""The commands: one page each, and what they share to be called by Hydra."""
