"""What a command line says of flags, sweeps and launchers, before Hydra reads it. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

from gancli.errors import UserError, did_you_mean

MULTIRUN = {"-m", "--multirun"}


def flags_last(words: Sequence[str]) -> list[str]:
    """Returns the words with Hydra's flags behind the settings, each by its long name, its value a word of its own.

    Hydra itself takes no settings behind a flag that stands among them. Raises UserError for an unknown flag.
    """
    from hydra._internal.utils import get_args_parser

    def fail(message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    found, unknown = parser.parse_known_intermixed_args(list(words))
    if found.resolve and not (found.cfg or found.help):
        fail("--resolve: goes with --cfg job, which prints the composed settings")
    flags = {name: value for name, value in vars(found).items() if name != "overrides" and value not in (None, False)}
    if unknown:
        known = [f"--{name.replace('_', '-')}" for name in vars(found) if name != "overrides"]
        raise UserError(
            f"{unknown[0]}: no such flag{did_you_mean(unknown[0], known) or '; settings are written key=value'}"
        )
    last = [[f"--{name.replace('_', '-')}", *([] if value is True else [value])] for name, value in flags.items()]
    return [*found.overrides, *(word for flag in last for word in flag)]


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
