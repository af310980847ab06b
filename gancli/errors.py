"""The ways in which a run ends early and the user is told why."""


class UserError(Exception):
    """Bad input: the text names the key, the value and the way out. Exit status 2, no traceback."""


class Diverged(Exception):
    """Training met a number that is not finite and stopped before the update. Exit status 1."""


class Collapsed(Diverged):
    """The watch found samples that went bad, and was told to stop there. Exit status 1."""
