"""`gancli train`: from settings to a trained run folder, on one page."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from gancli import config
from gancli.build import build, make, resolve
from gancli.datasets.base import Dataset, DatasetInfo
from gancli.device import Runtime
from gancli.diagnostics.base import Diagnostic, Run, diagnose
from gancli.distributed.process_group import join_process_group
from gancli.distributed.signals import Signals
from gancli.errors import Diverged, SettingError, UserError, did_you_mean
from gancli.game import PLAYERS, Game, Penalty
from gancli.losses import Loss
from gancli.networks.base import Discriminator, Generator, share_batches
from gancli.networks.packed import Packed, packed_shape
from gancli.optimizers import ScheduledOptimizer
from gancli.randomness import Stream, seed_global_generators, seeded
from gancli.training import cuda_graphs
from gancli.training.logging import NullLogger
from gancli.training.run_folder import RunFolder, settings_to_continue
from gancli.training.trainer import Trainer
from gancli.updates import Update

log = logging.getLogger(__name__)
T = TypeVar("T")
SCHEMA = {"seed": int, "conditional": bool, "pack": int, "resume": str, "objective": str | None, "trust": list[str]}


def run(settings: dict[str, Any], *, folder: Path, overrides: list[str], search: bool = False) -> Trainer:
    """Trains in `folder` by resolved `settings`; returns the trainer as it stands at the end.

    overrides: as typed. search: whether the run must end in a number to compare. Raises UserError, Diverged, OSError.
    """
    began, signals = time.monotonic(), Signals()
    settings = {**settings, "penalty": chosen_penalties(settings["penalty"], overrides)}
    group = join_process_group()
    run_folder = RunFolder(group.broadcast_from_main(folder.resolve))
    with signals.listening(to_stop=False), contextlib.ExitStack() as stack:
        group.broadcast_from_main(lambda: stack.enter_context(run_folder.locked()))
        settings, resuming = group.broadcast_from_main(
            lambda: settings_to_continue(run_folder, settings, overrides=overrides)
        )
        group.broadcast_from_main(lambda: check_settings(settings, world_size=group.world_size))
        trainer = assemble(settings, folder=run_folder)
        check_objective(trainer, settings["objective"], search=search)
        if resuming:
            resume(trainer, run_folder)
        trainer.startup_seconds = group.all_reduce_max([time.monotonic() - began])[0]
        warn_of_time_limit(trainer)
        if group.is_main_process:  # anew for a run that goes on: it may be longer
            run_folder.describe(settings, overrides=overrides)
        try:
            trainer.fit(signals)
            if group.is_main_process:
                finish(trainer, run_folder, settings["diagnostic"])
        except Exception as error:
            if group.is_main_process:
                with contextlib.suppress(OSError):  # the first error is the one to report
                    run_folder.record_end(_failure(error))
            raise
        return trainer


def finish(trainer: Trainer, folder: RunFolder, chosen: Mapping[str, Any]) -> None:
    """What the main process does after the last step. chosen: the settings of the group `diagnostic`."""
    if trainer.stopped_by is None:
        diagnose(Run(folder, trainer), diagnostics(chosen))
    folder.record_end(how_ended(trainer))
    summarise(trainer, folder)


def _failure(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text if isinstance(error, Diverged) else f"failed: {text}"


def warn_of_time_limit(trainer: Trainer) -> None:
    """Warns where Slurm ends this job before train.max_time does."""
    end = os.environ.get("SLURM_JOB_END_TIME")
    left = (float(end) - time.time() + trainer.startup_seconds) / 60 if end else float("inf")
    if trainer.max_time is not None and trainer.max_time > left:
        log.warning("train.max_time=%g: Slurm ends this job %.0f minutes after its start", trainer.max_time, left)


def chosen_penalties(penalties: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Leaves out an experiment's settings of penalties that were not chosen: experiment=mnist penalty=none."""
    typed = {
        override.lstrip("+").split(".")[1] for override in overrides if override.lstrip("+").startswith("penalty.")
    }
    return {name: node for name, node in penalties.items() if name in typed or "_target_" in node}


def check_settings(settings: Mapping[str, Any], *, world_size: int = 1) -> None:
    """Raises one UserError with everything that is wrong and that the settings alone tell, before data is read.

    Every part is built that needs no data; networks are built where the shape of the samples is known, without memory
    for their weights. A section with a wrong type is not built.
    """
    problems = list(config.problems(settings, SCHEMA))
    errors = [text for _, text in problems]
    broken = {key.split(".")[0] for key, _ in problems}

    def attempt(section: str, function: Callable[[], T]) -> T | None:
        if section in broken:
            return None
        try:
            return function()
        except UserError as error:
            errors.extend(str(error).splitlines() if isinstance(error, SettingError) else [str(error)])
            return None

    def attempt_each(group: str) -> dict[str, Any]:
        found = {
            name: attempt(group, partial(build, node, key=f"{group}.{name}"))
            for name, node in settings[group].items()
            if name != "features"  # an extractor needs the data
        }
        return {name: part for name, part in found.items() if part is not None}

    def attempt_one(section: str, *known: Any) -> Any:
        return attempt(section, partial(build, settings[section], *known, key=section))

    info = attempt("dataset", lambda: _describe(settings["dataset"]))
    prior, update, augment = (attempt_one(section) for section in ("prior", "update", "augment"))
    attempt_one("loss")
    attempt_one("health")
    attempt_one("checkpoint", Path())
    penalties = attempt_each("penalty")
    attempt_each("metric")
    attempt_each("diagnostic")
    for section in ("train", "evaluation", "log"):
        attempt(section, partial(_check_node, settings[section], section, world_size))
    if not broken & {"train", "pack", "conditional"}:
        parts = world_size * settings["train"]["accumulate"]
        errors += check_combination(settings, penalties, update, info, parts=parts)
    if info is not None and augment is not None:
        attempt("augment", lambda: augment.draws_for(info.shape))
    packable = not broken & {"pack", "conditional"} and settings["pack"] >= 1
    if packable and info is not None and prior is not None and not (settings["pack"] > 1 and settings["conditional"]):
        with torch.device("meta"):
            pair = attempt("network", lambda: networks(settings, info.shape, info.num_classes or 0, prior.dim))
        for player, network in zip(PLAYERS, pair or (), strict=False):
            attempt("optimizer", partial(optimizer, settings, player, network))
        if pair is not None:
            attempt_one("ema", pair[0])
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))


def _check_node(node: Mapping[str, Any], key: str, world_size: int) -> None:
    """Calls the class's own `check_settings`, for a class whose constructor needs what only the data tells."""
    target = resolve(node["_target_"], key=key)
    known = {"world_size": world_size} if target is Trainer else {}
    if hasattr(target, "check_settings"):
        try:
            target.check_settings(**make(node, key=key).keywords, **known)
        except SettingError as error:
            raise UserError("\n".join(f"{key}.{line}" for line in str(error).splitlines())) from error


def _describe(node: Mapping[str, Any]) -> DatasetInfo | None:
    """Returns the shape of the samples and the number of classes where the settings alone tell them."""
    target = resolve(node["_target_"], key="dataset")
    if not hasattr(target, "describe"):
        return None
    given = make(node, key="dataset").keywords
    try:
        return target.describe(**given)  # type: ignore[no-any-return]
    except SettingError as error:
        raise UserError("\n".join(f"dataset.{line}" for line in str(error).splitlines())) from error


def check_combination(
    settings: Mapping[str, Any],
    penalties: Mapping[str, Penalty],
    update: Update | None,
    info: DatasetInfo | None,
    *,
    parts: int,
) -> list[str]:
    """Returns what is wrong with settings that are right each by itself. parts: into which a batch is divided."""
    errors, pack, conditional = [], settings["pack"], settings["conditional"]
    if pack < 1:
        errors.append(f"pack={pack}: 1 for none, or the number of samples that the discriminator sees together")
    if pack > 1:
        if conditional:
            errors.append(
                f"pack={pack}: samples of different classes do not go into one pack; use conditional=false, or pack=1"
            )
        errors += [
            f"pack={pack}: penalty {name} sets the norm of one sample's gradient, and a pack has one logit; "
            "use penalty=[r1] or penalty=[r1,r2]"
            for name, penalty in penalties.items()
            if penalty.requires_single_sample
        ]
    if conditional and info is not None and info.num_classes == 0:
        errors.append(_NO_LABELS)
    if parts > 1:
        errors += [
            f"penalty.{name}: is of the whole batch's gradient, so one process and train.accumulate=1 only"
            for name, penalty in penalties.items()
            if penalty.player == "both"
        ]
        if update is not None and not update.divisible:
            errors.append(
                f"update={type(update).__name__.lower()}: cannot divide a batch, so one process and "
                "train.accumulate=1 only"
            )
    return errors


_NO_LABELS = "conditional=true: this data set has no labels; use conditional=false, or dataset.labels=true for a folder"


def check_objective(trainer: Trainer, name: str | None, *, search: bool) -> None:
    """Raises UserError where the run cannot end in the number that a sweep compares."""
    suite = trainer.evaluation.suite
    if suite is None:
        if search:
            raise UserError("hydra/sweeper: a search compares evaluations; give evaluation.every and a fitting metric")
        return
    known = [*suite.names, "diversity"]
    if name is not None and not any(fnmatch.fnmatchcase(name, each) for each in known):
        raise UserError(f"objective={name}: not among {', '.join(known)}{did_you_mean(name, known)}")


def objective(trainer: Trainer, name: str | None) -> float | None:
    """Returns what a sweep compares: the last evaluation's number `name`, or the one that ranks checkpoints.

    None where nothing was measured. Raises UserError for a name that is not among the numbers.
    """
    evaluation = trainer.evaluation
    if not evaluation.latest or evaluation.suite is None:
        return None
    name = name or evaluation.suite.ranking[0]
    if name not in evaluation.latest:
        raise UserError(f"objective={name}: not among {', '.join(evaluation.latest)}")
    return evaluation.latest[name]


def diagnostics(node: Mapping[str, Any]) -> dict[str, Diagnostic]:
    """Builds those of the group `diagnostic`, by name."""
    return {name: build(one, key=f"diagnostic.{name}") for name, one in node.items()}


def assemble(settings: Mapping[str, Any], *, folder: RunFolder) -> Trainer:
    """Builds every part in the order of the data's flow. Raises UserError."""
    seed, group = settings["seed"], join_process_group()
    runtime: Runtime = build(settings["device"], key="device", process_group=group)
    seed_global_generators(seed)
    with group.main_process_first():
        dataset: Dataset = build(settings["dataset"], key="dataset").to(runtime.device)
    if settings["conditional"] and not dataset.num_classes:
        raise UserError(_NO_LABELS)
    prior = build(settings["prior"], key="prior")
    generator, discriminator = networks(settings, dataset.shape, dataset.num_classes, prior.dim)
    generator, discriminator = runtime.place(generator), runtime.place(discriminator)
    share_batches(generator, group)
    share_batches(discriminator, group)
    loss, update = build(settings["loss"], key="loss"), build(settings["update"], key="update")
    penalties = {name: build(node, key=f"penalty.{name}") for name, node in settings["penalty"].items()}
    warn_of_lazy_penalties(loss, penalties, dataset)
    augment = build(settings["augment"], key="augment")
    augment.draws_for(dataset.shape)  # raises UserError where it does not suit such samples
    game = Game(
        generator=generator,
        discriminator=discriminator,
        loss=loss,
        prior=prior,
        stream=Stream(seeded(seed, "noise"), device=runtime.device),
        augment=augment,
        penalties=penalties,
        autocast=runtime.autocast,
    )
    log.info("device: %s", runtime)
    kind = settings["dataset"]["_target_"].rpartition(".")[2]
    log.info("data: %s %s, %s", kind, dataset.shape, _size(len(dataset)))
    log.info("parameters: generator %s, discriminator %s", _parameters(generator), _parameters(discriminator))
    ema = build(settings["ema"], generator, key="ema")
    logger = NullLogger()
    if group.is_main_process:
        parts = {"settings": settings, "game": game, "ema": ema, "dataset": dataset, "seed": seed}
        logger = build(settings["log"], folder, key="log", **parts)
    with group.main_process_first():
        evaluation = build(
            settings["evaluation"],
            key="evaluation",
            metric=settings["metric"],
            dataset=dataset,
            labelled=settings["conditional"],
            runtime=runtime,
            health=build(settings["health"], key="health"),
            logger=logger,
        )
    trainer: Trainer = build(
        settings["train"],
        key="train",
        game=game,
        update=update,
        optimizers={player: optimizer(settings, player, game.network(player)) for player in PLAYERS},
        ema=ema,
        dataset=dataset,
        checkpoints=build(settings["checkpoint"], folder.checkpoints, key="checkpoint"),
        logger=logger,
        evaluation=evaluation,
        process_group=group,
        seed=seed,
    )
    if runtime.cuda_graph:
        cuda_graphs.apply(trainer, lambda: cuda_graphs.CudaRecorder(runtime.device))
    return trainer


def warn_of_lazy_penalties(loss: Loss, penalties: Mapping[str, Penalty], dataset: Dataset) -> None:
    """Warns of lazy penalties with a relativistic loss on points, with which training fails."""
    if loss.relativistic and len(dataset.shape) == 1:
        for name in (name for name, penalty in penalties.items() if penalty.interval > 1):
            log.warning("penalty.%s.interval: on points this loss fails with lazy penalties (R3GAN); take 1", name)


def networks(
    settings: Mapping[str, Any], shape: tuple[int, ...], num_classes: int, latent_dim: int
) -> tuple[Generator, Discriminator]:
    """Builds generator and discriminator for data of `shape`; they take labels only where that was asked for."""
    known = {"image_shape": shape, "num_classes": num_classes if settings["conditional"] else 0}
    parts, pack = settings["network"], settings["pack"]
    generator = build(parts["generator"], key="network.generator", latent_dim=latent_dim, **known)
    known["image_shape"] = packed_shape(shape, pack)
    discriminator = build(parts["discriminator"], key="network.discriminator", **known)
    return generator, discriminator if pack == 1 else Packed(discriminator, pack=pack)


def optimizer(settings: Mapping[str, Any], player: str, network: nn.Module) -> ScheduledOptimizer:
    """Builds the player's optimizer; torch's own complaints about its settings become errors that name the key."""
    key = f"optimizer.{player}"
    try:
        return ScheduledOptimizer(make(settings["optimizer"][player], key=key), network.parameters())
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {error}") from error


def resume(trainer: Trainer, folder: RunFolder) -> None:
    """Puts the trainer where the newest readable checkpoint stands; at the start where there is none."""
    checkpoints, group = trainer.checkpoints, trainer.process_group
    state = checkpoints.newest_on_all_processes(group)
    if state is None:
        if group.broadcast_from_main(checkpoints.files):
            raise UserError(f"{checkpoints.folder}: no checkpoint here can be read; move it away to start anew")
        log.warning("%s has no checkpoint yet: the run starts anew", folder.path)
        return
    load(trainer, state)
    step, minus_step, seconds, minus_seconds = group.all_reduce_max(
        [trainer.step, -trainer.step, trainer.seconds, -trainer.seconds]
    )
    if step + minus_step or seconds + minus_seconds:
        raise UserError(f"{checkpoints.folder}: not the same for all processes; it must be on a file system they share")
    log.info("resumed after %s images", f"{trainer.images:,}")


def load(trainer: Trainer, state: dict[str, Any]) -> None:
    """Puts the trainer where `state` was taken. Raises UserError where it does not fit."""
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{trainer.checkpoints.path(state['images'])} does not fit this run: {error}") from None


def how_ended(trainer: Trainer) -> str:
    """Returns "finished", or by what the run was stopped."""
    by = trainer.stopped_by
    return "finished" if by is None else f"stopped by {getattr(by, 'name', by)}"


def summarise(trainer: Trainer, folder: RunFolder) -> None:
    """Logs where everything is and what to type next."""
    latest = trainer.logger.latest
    log.info("%s: %s images in %.0f s", how_ended(trainer), f"{trainer.images:,}", trainer.seconds)
    if "game/value" in latest:
        log.info("value of the game %.3f (saddle point: -log 4 = -1.386)", latest["game/value"])
    evaluation = trainer.evaluation
    if evaluation.latest and evaluation.suite is not None:
        name, best = evaluation.suite.ranking[0], ""
        if evaluation.best is not None:
            best = f", {evaluation.best:.4g} at its best, after {evaluation.best_images:,} images"
        share = evaluation.seconds / max(trainer.seconds, 1e-9)
        log.info("%s %.4g now%s; evaluation took %.1f %% of the time", name, evaluation.latest[name], best, 100 * share)
    log.info("run folder    %s", folder.path)
    log.info("picture       %s", folder.final_samples)
    log.info("checkpoint    %s", trainer.checkpoints.path(trainer.images))
    log.info("next:")
    if trainer.stopped_by is not None:
        log.info("  gancli train resume=%s", folder.path)
    log.info("  gancli sample run=%s count=64", folder.path)
    log.info("  gancli evaluate run=%s", folder.path)
    log.info("  tensorboard --logdir %s", folder.path)


def _parameters(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def _size(length: int) -> str:
    return f"{length:,} samples" if length < 2**62 else "drawn afresh at every step"
