"""`freeze=[…]`: parameters that keep their values, such as those of a discriminator that was trained on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from gancli.errors import UserError, printable

_SHOWN = 3  # names in a message


def freeze(networks: Mapping[str, nn.Module], patterns: Sequence[str]) -> None:
    """Takes the parameters that match one of `patterns` out of training (FreezeD; Mo, Cho and Shin, 2020).

    networks: by player. A pattern, such as "discriminator.stages.[0-3].*", is for the player's name with the
    parameter's name behind it. Running statistics of normalisation are no parameters and go on. Raises UserError for
    a pattern that matches nothing, and where nothing of a network is left to train.
    """
    parameters = {
        f"{player}.{name}": parameter
        for player, network in networks.items()
        for name, parameter in network.named_parameters()
    }
    for pattern in patterns:
        matched = [parameter for name, parameter in parameters.items() if fnmatchcase(name, pattern)]
        if not matched:
            raise UserError(f"freeze: {printable(pattern)} matches no parameter; {_nearest(pattern, list(parameters))}")
        for parameter in matched:
            parameter.requires_grad_(False)
    for player, network in networks.items() if patterns else ():
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UserError(f"freeze=[{','.join(map(printable, patterns))}]: leaves nothing of the {player} to train")


def count(network: nn.Module) -> str:
    """Returns the number of the network's parameters, and of those that are frozen, as a text."""
    total, frozen = (
        sum(each.numel() for each in network.parameters() if all_of_them or not each.requires_grad)
        for all_of_them in (True, False)
    )
    return f"{total:,}" + (f" ({frozen:,} of them frozen)" if frozen else "")


def _nearest(pattern: str, names: Sequence[str]) -> str:
    close = get_close_matches(pattern, names, n=_SHOWN, cutoff=0.5)
    return "the nearest are " + ", ".join(close) if close else f"there are {', '.join(names[:_SHOWN])}, …"
