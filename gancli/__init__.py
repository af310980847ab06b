"""gancli: train generative adversarial networks from the shell, from composed YAML.

In Python, `gancli.load(folder)` gives a trained generator and `gancli.train([…])` trains one; see `gancli.api`,
which is imported when it is first used.
"""

from importlib import import_module as _import_module
from typing import Any

__version__ = "0.2.0"
_PUBLIC = ("Diverged", "Projection", "TrainedGenerator", "UserError", "load", "train")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(_import_module("gancli.api"), name)
    raise AttributeError(f"module 'gancli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
