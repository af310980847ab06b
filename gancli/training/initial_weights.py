"""`init=RUN`: a new run starts from the weights of another run's newest checkpoint, and from nothing else of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from gancli.errors import UserError
from gancli.files.user_paths import expand
from gancli.training.checkpoint import Checkpoints
from gancli.training.run_folder import RunFolder
from gancli.training.trainer import Trainer

log = logging.getLogger(__name__)


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

    Raises UserError for the first tensor whose name or shape is not the same in both runs; then nothing was changed.
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
    for name, network in networks.items():
        mismatch = _first_mismatch(network.state_dict(), state[name])
        if mismatch is not None:
            raise UserError(
                f"init={init}: {name}.{mismatch}; give this run that one's shape of samples, prior.dim, conditional, "
                "pack and network settings, or leave init out"
            )
    for name, network in networks.items():
        network.load_state_dict(state[name])
    log.info("weights of %s, after %s images there", init, f"{state['images']:,}")
    return str(checkpoints.path(state["images"]).resolve())


def _first_mismatch(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> str | None:
    """Returns the first name that only one has, or whose shapes differ, and how; None where all are the same."""
    for name in {**here, **there}:
        shapes = [str(tuple(weights[name].shape)) if name in weights else "absent" for weights in (here, there)]
        if shapes[0] != shapes[1]:
            return f"{name} is {shapes[0]} here and {shapes[1]} there"
    return None
