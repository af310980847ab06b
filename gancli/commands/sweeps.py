"""What a command line sweeps over: `gancli doctor` measures one of its runs and counts the others. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Sequence

MULTIRUN = {"-m", "--multirun"}


def one_of(words: Sequence[str]) -> tuple[list[str], int]:
    """The words of the sweep's first run, and how many runs it has; 0 for words that are no sweep.

    A range is as good as one value, at its lower end: how many are tried is the sweeper's to say. Raises what Hydra
    raises on words that it cannot read.
    """
    launched = any(word.startswith("hydra/launcher=") and not word.endswith("=basic") for word in words)
    if not launched and not MULTIRUN & set(words):
        return list(words), 0
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep

    parser, first, counts = OverridesParser.create(), [], [1]
    for word in words:
        if word in MULTIRUN:
            continue
        if "=" in word and not word.startswith(("-", "hydra.", "hydra/")):
            override = parser.parse_override(word)
            key = word.partition("=")[0]
            if override.is_interval_sweep():
                interval = override.value()
                assert isinstance(interval, IntervalSweep)
                word = f"{key}={interval.start}"
            elif override.is_discrete_sweep() and "glob(" not in word:  # whose choices only Hydra's loader knows
                values = list(override.sweep_string_iterator())
                counts.append(len(values))
                word = f"{key}={values[0]}"
        first.append(word)
    return first, math.prod(counts)
