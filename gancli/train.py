"""`gancli train`: from settings to a trained run folder, on one page."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gancli import config, distributed, graphs, run_folder
from gancli.config import build
from gancli.diagnostics.base import Diagnostic, Run, diagnose
from gancli.errors import Diverged, UserError
from gancli.game import Game
from gancli.monitor import Silent
from gancli.networks.packed import Packed, packed_shape
from gancli.optimizers import ScheduledOptimizer
from gancli.signals import Signals
from gancli.trainer import PLAYERS, Trainer

log = logging.getLogger(__name__)
PLAIN = {"seed": int, "conditional": bool, "pack": int, "resume": str, "objective": str | None, "trust": list[str]}


def run(settings: dict[str, Any], *, folder: Path, overrides: list[str], search: bool = False) -> Trainer:
    """Trains in `folder` by resolved `settings`; returns the trainer as it stands at the end.

    search: whether the run must end in a number to compare. Raises UserError, Diverged, OSError.
    """
    began, signals = time.monotonic(), Signals()
    settings = {**settings, "penalty": _chosen(settings["penalty"], overrides)}
    team = distributed.team()
    folder = team.said(folder.resolve)
    with signals.listening(to_stop=False), contextlib.ExitStack() as held:
        team.said(lambda: held.enter_context(run_folder.locked(folder)))
        settings, resuming = team.said(lambda: _agreed(folder, settings, overrides))
        trainer = assemble(settings, folder=folder)
        check_objective(trainer, settings["objective"], search=search)
        if resuming:
            resume(trainer, folder)
        trainer.prepared = team.largest([time.monotonic() - began])[0]  # and everybody is here
        warn_of_the_limit(trainer)
        if team.first:  # anew for a run that goes on: it may be longer
            run_folder.describe(folder, settings, overrides=overrides)
        try:
            trainer.fit(signals)
            if team.first:
                with distributed.apart():
                    finish(trainer, folder, settings["diagnostic"])
        except Exception as error:
            if team.first:
                with contextlib.suppress(OSError):  # what happened first is told
                    run_folder.ended(folder, _failure(error))
            raise
        return trainer


def finish(trainer: Trainer, folder: Path, chosen: Mapping[str, Any]) -> None:
    """What the first process does after the last step. chosen: the group `diagnostic`."""
    if trainer.stopped_by is None:
        diagnose(Run(folder, trainer), diagnostics(chosen))
    run_folder.ended(folder, how_ended(trainer))
    summarise(trainer, folder)


def _agreed(folder: Path, settings: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], bool]:
    settings, resuming = run_folder.continued(folder, settings, overrides=overrides)
    config.check(settings, PLAIN)
    return settings, resuming


def _failure(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text if isinstance(error, Diverged) else f"failed: {text}"


def warn_of_the_limit(trainer: Trainer) -> None:
    """Where Slurm ends this job before train.max_time does."""
    end = os.environ.get("SLURM_JOB_END_TIME")
    left = (float(end) - time.time() + trainer.prepared) / 60 if end else float("inf")
    if trainer.max_time is not None and trainer.max_time > left:
        log.warning("train.max_time=%g: Slurm ends this job %.0f minutes after its start", trainer.max_time, left)


def _chosen(penalties: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Without what an experiment says of penalties that were then not chosen: experiment=mnist penalty=none."""
    typed = {
        override.lstrip("+").split(".")[1] for override in overrides if override.lstrip("+").startswith("penalty.")
    }
    return {name: node for name, node in penalties.items() if name in typed or "_target_" in node}


def check_objective(trainer: Trainer, name: str | None, *, search: bool) -> None:
    """Raises UserError where the run cannot end in the number that a sweep compares."""
    evaluator = trainer.evaluation.evaluator
    if evaluator is None:
        if search:
            raise UserError("hydra/sweeper: a search compares evaluations; give evaluation.every and a fitting metric")
        return
    metrics = evaluator.metrics.values()
    known = [*(each for metric in metrics for each in (*metric.values, *metric.also)), "diversity"]
    if name is not None and not any(fnmatch.fnmatchcase(name, each) for each in known):
        raise UserError(f"objective={name}: not among {', '.join(known)}{config.nearest(name, known)}")


def objective(trainer: Trainer, name: str | None) -> float | None:
    """What a sweep compares: the last evaluation's number `name`, or the one that judges checkpoints.

    None where nothing was measured. Raises UserError for a name that is not among them.
    """
    evaluation = trainer.evaluation
    values = trainer.team.said(lambda: evaluation.latest)
    if not values or evaluation.evaluator is None:
        return None
    name = name or evaluation.evaluator.best[0]
    if name not in values:
        raise UserError(f"objective={name}: not among {', '.join(values)}")
    return values[name]


def diagnostics(node: Mapping[str, Any]) -> dict[str, Diagnostic]:
    """Those of the group `diagnostic`, by name."""
    return {name: build(one, key=f"diagnostic.{name}") for name, one in node.items()}


def assemble(settings: Mapping[str, Any], *, folder: Path) -> Trainer:
    """Builds every part in the order of the data's flow."""
    seed = settings["seed"]
    runtime = build(settings["device"], key="device")
    runtime.seed(seed)
    with runtime.team.first_first():
        dataset = build(settings["dataset"], key="dataset").to(runtime.device)
    if settings["conditional"] and not dataset.num_classes:
        raise UserError(
            "conditional=true: this data set has no labels; use conditional=false, or dataset.labels=true for a folder"
        )
    prior = build(settings["prior"], key="prior")
    generator, discriminator = (
        runtime.place(network) for network in networks(settings, dataset.shape, dataset.num_classes, prior.dim)
    )
    loss, update = build(settings["loss"], key="loss"), build(settings["update"], key="update")
    penalties = {name: build(node, key=f"penalty.{name}") for name, node in settings["penalty"].items()}
    for name in (name for name, penalty in penalties.items() if penalty.one_sample and settings["pack"] > 1):
        raise UserError(
            f"pack={settings['pack']}: penalty {name} sets the norm of one sample's gradient, and a pack has "
            "one logit; use penalty=[r1] or penalty=[r1,r2]"
        )
    if loss.relativistic and len(dataset.shape) == 1:
        for name in (name for name, penalty in penalties.items() if penalty.interval > 1):
            log.warning("penalty.%s.interval: on points this loss fails with lazy penalties (R3GAN); take 1", name)
    augment = build(settings["augment"], key="augment")
    try:
        augment.draws_for(dataset.shape)
    except ValueError as error:
        raise UserError(f"augment: {error}; use augment=none") from None
    game = Game(
        generator=generator,
        discriminator=discriminator,
        loss=loss,
        prior=prior,
        stream=runtime.stream(seed),
        augment=augment,
        penalties=penalties,
        autocast=runtime.autocast,
    )
    log.info("device: %s", runtime)
    log.info(
        "data: %s %s, %s", settings["dataset"]["_target_"].rpartition(".")[2], dataset.shape, _amount(len(dataset))
    )
    log.info("parameters: generator %s, discriminator %s", _count(generator), _count(discriminator))
    with runtime.team.first_first():
        evaluation = build(
            settings["evaluation"],
            folder,
            key="evaluation",
            metric=settings["metric"],
            dataset=dataset,
            labelled=settings["conditional"],
            runtime=runtime,
            watch=build(settings["watch"], key="watch"),
        )
    trainer: Trainer = build(
        settings["train"],
        key="train",
        game=game,
        update=update,
        optimizers={player: optimizer(settings, player, game.network(player)) for player in PLAYERS},
        ema=build(settings["ema"], generator, key="ema"),
        dataset=dataset,
        checkpoints=build(settings["checkpoint"], folder / "checkpoints", key="checkpoint"),
        monitor=build(settings["log"], folder, key="log", settings=settings) if runtime.team.first else Silent(),
        evaluation=evaluation,
        team=runtime.team,
        seed=seed,
    )
    if runtime.cuda_graph:
        graphs.apply(trainer, lambda: graphs.CudaRecorder(runtime.device))
    return trainer


def networks(
    settings: Mapping[str, Any], shape: tuple[int, ...], num_classes: int, dim: int
) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator for data of `shape` and noise of `dim`; labels only where asked for."""
    known = {"image_shape": shape, "num_classes": num_classes if settings["conditional"] else 0}
    parts, pack = settings["network"], settings["pack"]
    generator = build(parts["generator"], key="network.generator", latent_dim=dim, **known)
    if pack < 1 or (pack > 1 and known["num_classes"]):
        raise UserError(f"pack={pack}: 1 for none, or more for a run without labels (conditional=false)")
    known["image_shape"] = packed_shape(shape, pack)
    discriminator = build(parts["discriminator"], key="network.discriminator", **known)
    return generator, discriminator if pack == 1 else Packed(discriminator, pack=pack)


def optimizer(settings: Mapping[str, Any], player: str, network: nn.Module) -> ScheduledOptimizer:
    """The player's optimizer; torch's complaints name the key."""
    key = f"optimizer.{player}"
    try:
        return ScheduledOptimizer(config.make(settings["optimizer"][player], key=key), network.parameters())
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {error}") from error


def resume(trainer: Trainer, folder: Path) -> None:
    """Puts the trainer where the newest readable checkpoint stands; from the start where there is none."""
    checkpoints, team = trainer.checkpoints, trainer.team
    state = checkpoints.newest_for(team)
    if state is None:
        if team.said(checkpoints.files):
            raise UserError(f"{checkpoints.folder}: no checkpoint here can be read; move it away to start anew")
        log.warning("%s has no checkpoint yet: the run starts anew", folder)
        return
    load(trainer, state)
    highest = team.largest([trainer.step, -trainer.step, trainer.seconds, -trainer.seconds])
    if highest[0] + highest[1] or highest[2] + highest[3]:
        raise UserError(f"{checkpoints.folder}: not the same for all processes; it must be on a file system they share")
    log.info("resumed after %s images", f"{trainer.images:,}")


def load(trainer: Trainer, state: dict[str, Any]) -> None:
    """Puts the trainer where `state` was taken. Raises UserError where it does not fit."""
    try:
        trainer.load_state(state)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{trainer.checkpoints.path(state['images'])} does not fit this run: {error}") from None


def how_ended(trainer: Trainer) -> str:
    """ "finished", or by what it was stopped."""
    by = trainer.stopped_by
    return "finished" if by is None else f"stopped by {getattr(by, 'name', by)}"


def summarise(trainer: Trainer, folder: Path) -> None:
    """Says where everything is and what to type next."""
    latest = trainer.monitor.latest
    finished = trainer.stopped_by is None
    log.info("%s: %s images in %.0f s", how_ended(trainer), f"{trainer.images:,}", trainer.seconds)
    if "game/value" in latest:
        log.info("value of the game %.3f (saddle point: -log 4 = -1.386)", latest["game/value"])
    evaluation = trainer.evaluation
    if evaluation.latest and evaluation.evaluator is not None:
        name, best = evaluation.evaluator.best[0], ""
        if evaluation.best is not None:
            best = f", {evaluation.best:.4g} at its best, after {evaluation.best_images:,} images"
        share = evaluation.seconds / max(trainer.seconds, 1e-9)
        log.info("%s %.4g now%s; evaluation took %.1f %% of the time", name, evaluation.latest[name], best, 100 * share)
    log.info("run folder    %s", folder)
    log.info("picture       %s", folder / "samples.png")
    log.info("checkpoint    %s", trainer.checkpoints.path(trainer.images))
    log.info("next:")
    if not finished:
        log.info("  gancli train resume=%s", folder)
    log.info("  gancli sample run=%s count=64", folder)
    log.info("  gancli evaluate run=%s", folder)
    log.info("  tensorboard --logdir %s", folder)


def _count(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def _amount(length: int) -> str:
    return f"{length:,} samples" if length < 2**62 else "drawn afresh at every step"
