"""The theory, looked for in a run: what it says of this one, in numbers, a picture and a sentence."""
