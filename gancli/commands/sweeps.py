"""What a command line says of sweeps and launchers, before Hydra reads it. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

MULTIRUN = {"-m", "--multirun"}


def is_multirun(words: Sequence[str]) -> bool:
    """Whether the command line asks for a sweep."""
    return bool(MULTIRUN & set(words))


def chosen_launcher(words: Sequence[str]) -> str | None:
    """Returns the launcher that the command line chooses, the last one named; None for Hydra's own basic one."""
    chosen = [word.partition("=")[2] for word in words if word.startswith("hydra/launcher=")]
    return chosen[-1] if chosen and chosen[-1] != "basic" else None


def first_run(words: Sequence[str]) -> tuple[list[str], int]:
    """Returns the command line of the sweep's first run, and how many runs it has; 0 for a command without a sweep.

    An interval counts as one value, its lower end, since the sweeper decides how many are tried. Raises Hydra's
    exception for words that it cannot read.
    """
    if not is_multirun(words) and chosen_launcher(words) is None:
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
            elif override.is_discrete_sweep() and "glob(" not in word:  # only Hydra's config loader resolves a glob
                values = list(override.sweep_string_iterator())
                counts.append(len(values))
                word = f"{key}={values[0]}"
        first.append(word)
    return first, math.prod(counts)
