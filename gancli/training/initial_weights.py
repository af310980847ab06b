"""`init=RUN`: a new run starts from the weights of another run's newest checkpoint that fit, and nothing else of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from gancli.errors import UserError
from gancli.files.user_paths import expand
from gancli.training.checkpoint import Checkpoints
from gancli.training.run_folder import RunFolder
from gancli.training.trainer import Trainer

log = logging.getLogger(__name__)
_SHOWN = 3  # tensors that the log names


def checkpoints_of(init: str) -> Checkpoints:
    """Returns the checkpoints of the run folder `init`. Raises UserError where there are none."""
    folder = RunFolder(expand(init, key="init"))
    if not folder.exists():
        raise UserError(f"init={init}: not a run folder, it has no config.yaml")
    folder.check_format()
    checkpoints = Checkpoints(folder.checkpoints)
    if not checkpoints.files():
        raise UserError(f"init={init}: this run has no checkpoint yet; name another one, or leave init out")
    return checkpoints


def load_weights(trainer: Trainer, init: str) -> str:
    """Gives both networks and the average the weights of the run folder `init`; returns the path of the checkpoint.

    Tensors are taken where name and shape are the same in both runs; the others keep their random start, and the log
    says which. Raises UserError where no parameter of a network fits; then nothing was changed.
    """
    checkpoints = checkpoints_of(init)
    state = checkpoints.newest_on_all_processes(trainer.process_group)
    if state is None:
        raise UserError(f"init={init}: no checkpoint there can be read; name another run, or leave init out")
    networks = {
        "generator": trainer.game.generator,
        "discriminator": trainer.game.discriminator,
        "ema": trainer.ema.network,
    }
    found = {name: Fit(network, state[name]) for name, network in networks.items()}
    for name, fit in found.items():
        if not fit.fitting:
            raise UserError(
                f"init={init}: no parameter of the {name} there fits the one here, not {fit.describe(fit.left[0])}; "
                "give this run that one's kind of network and number of channels, or leave init out"
            )
    log.info("weights of %s, after %s images there:", init, f"{state['images']:,}")
    for name, fit in found.items():
        networks[name].load_state_dict(fit.taken, strict=False)
        log.info("  %s: %s", name, fit)
    trainer.ema.is_measured = not found["ema"].left  # statistics of other layers do not fit
    return str(checkpoints.path(state["images"]).resolve())


class Fit:
    """Which tensors of the network `here` can be taken from the state dictionary `there`, by name and shape.

    Networks for images of two sizes differ in the number of their stages. The numbers in the names count them from
    the start or from the end, whichever way more parameters fit. taken: name here -> tensor there. left: the names of
    the others.
    """

    def __init__(self, here: nn.Module, there: Mapping[str, Tensor]) -> None:
        self.here = here.state_dict()
        self.sizes = {name: parameter.numel() for name, parameter in here.named_parameters()}
        self._pair(list(self.here), there)
        in_order = self.fitting
        self._pair(_from_the_end(self.here), dict(zip(_from_the_end(there), there.values(), strict=True)))
        self.is_from_the_end = self.fitting > in_order
        if not self.is_from_the_end:
            self._pair(list(self.here), there)

    def _pair(self, names: Sequence[str], there: Mapping[str, Tensor]) -> None:
        """names: by which the tensors here are looked up in `there`."""
        self.there = {name: there.get(other) for name, other in zip(self.here, names, strict=True)}
        same = ((name, tensor) for name, tensor in self.there.items() if tensor is not None)
        self.taken = {name: tensor for name, tensor in same if tensor.shape == self.here[name].shape}
        self.left = [name for name in self.here if name not in self.taken]

    @property
    def fitting(self) -> int:
        """Returns how many of the parameters fit, counted in numbers."""
        return sum(size for name, size in self.sizes.items() if name in self.taken)

    def __str__(self) -> str:
        share = 100 * self.fitting / sum(self.sizes.values())
        text = f"{len(self.taken)} of {len(self.here)} tensors, {share:.0f} % of the parameters"
        if self.is_from_the_end:
            text += ", stages counted from the end"
        names = ", ".join(map(self.describe, self.left[:_SHOWN])) + (", …" if len(self.left) > _SHOWN else "")
        return f"{text}; not {names}" if names else text

    def describe(self, name: str) -> str:
        """Returns the name with the shapes here and there."""
        there = self.there[name]
        return (
            f"{name} ({tuple(self.here[name].shape)} here, {'absent' if there is None else tuple(there.shape)} there)"
        )


def _from_the_end(names: Iterable[str]) -> list[str]:
    """Returns the names with the first number in each, such as that of a stage, counted from the largest one down."""
    found = [re.fullmatch(r"(\D*\.)(\d+)(\..*)", name) for name in names]
    largest: dict[str, int] = {}
    for match in found:
        if match is not None:
            largest[match[1]] = max(largest.get(match[1], 0), int(match[2]))
    return [
        name if match is None else f"{match[1]}{int(match[2]) - largest[match[1]]}{match[3]}"
        for name, match in zip(names, found, strict=True)
    ]
