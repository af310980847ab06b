"""A trained generator at work: loading it, sampling, walks, directions, projection, export."""
