"""`gancli train`: from settings to a trained run folder, on one page."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from gancli.build import build
from gancli.commands.check_settings import NO_LABELS, check_settings
from gancli.commands.hydra_callbacks import keep_start
from gancli.commands.parts import average, networks, optimizer
from gancli.datasets.base import Dataset
from gancli.device import Runtime, device_name
from gancli.diagnostics.base import Diagnostic, TrainedRun, diagnose
from gancli.distributed.launch import number
from gancli.distributed.process_group import join_process_group
from gancli.distributed.signals import Signals
from gancli.errors import Diverged, UserError, did_you_mean
from gancli.game import PLAYERS, Game, Penalty
from gancli.losses import Loss
from gancli.networks.base import share_batches
from gancli.overrides import typed
from gancli.randomness import Stream, seed_global_generators, seeded
from gancli.training import cuda_graphs, frozen_weights
from gancli.training.continued_settings import settings_to_continue
from gancli.training.health import Remedies
from gancli.training.initial_weights import load_weights
from gancli.training.logging import NullLogger, TrainingLogger, Weights
from gancli.training.run_folder import RunFolder
from gancli.training.trainer import Trainer

log = logging.getLogger(__name__)
T = TypeVar("T")
Direction = Literal["minimize", "maximize"]
FINISHED = "finished"  # how a run ended that was not stopped before


def run(
    settings: dict[str, Any],
    *,
    folder: Path,
    overrides: list[str],
    search: Direction | None = None,
    by_budget: Sequence[str] = (),
) -> Trainer:
    """Trains in `folder` by resolved `settings`; returns the trainer as it stands at the end.

    overrides: as typed. search: what a search does with the number that the run ends
    in, None without a search. by_budget: keys of the settings that
    follow from the budget. Raises UserError, Diverged, OSError.
    """
    began, signals = time.monotonic(), Signals()
    settings = {**settings, "penalty": chosen_penalties(settings["penalty"], overrides)}
    group = join_process_group()
    run_folder = RunFolder(group.broadcast_from_main(folder.resolve))
    with signals.listening(to_stop=False), contextlib.ExitStack() as stack:
        group.broadcast_from_main(lambda: stack.enter_context(run_folder.locked()))
        settings, resuming = group.broadcast_from_main(
            lambda: settings_to_continue(run_folder, settings, overrides=overrides, by_budget=by_budget)
        )
        group.broadcast_from_main(lambda: check_settings(settings, world_size=group.world_size, resuming=resuming))
        trainer = assemble(settings, folder=run_folder)
        check_objective(trainer, settings["objective"], search=search)
        weights_from = None
        if resuming and resume(trainer, run_folder, keep_threads=settings["device"].get("threads") == "auto"):
            if trainer.progress >= 1.0 and group.broadcast_from_main(lambda: run_folder.has_ended(FINISHED)):
                log.info("finished: %s images in %.0f s; to go on:", f"{trainer.images:,}", trainer.seconds)
                log.info("  %s", command_to_continue(trainer, run_folder))
                return trainer
        elif settings["init"] is not None:
            weights_from = load_weights(trainer, settings["init"])
        trainer.startup_seconds = group.all_reduce_max([time.monotonic() - began])[0]
        warn_of_time_limit(trainer)
        if group.is_main_process:  # anew for a run that goes on: it may be longer
            classes = trainer.dataset.class_names
            run_folder.describe(
                settings,
                overrides=overrides,
                weights_from=weights_from,
                classes=classes,
                device=device_name(trainer.game.stream.device),
                processes=group.world_size,
            )
        keep_start()  # what is wrong from now on comes after much that is right
        try:
            trainer.fit(signals)
            shown = choose_samples(trainer)
            if group.is_main_process:
                finish(trainer, run_folder, settings["diagnostic"], shown=shown)
        except Exception as error:
            if group.is_main_process:
                with contextlib.suppress(OSError):  # the first error is the one to report
                    run_folder.record_end(_failure(error))
            if isinstance(error, torch.OutOfMemoryError):
                raise _out_of_memory(error, settings) from None
            raise
        return trainer


def _out_of_memory(error: torch.OutOfMemoryError, settings: Mapping[str, Any]) -> OSError:
    torch.cuda.empty_cache()  # for the next job of a sweep
    first = str(error).partition(". ")[0]
    return OSError(
        errno.ENOMEM,
        f"train.batch_size={settings['train']['batch_size']}: {first}; take a smaller batch, train.accumulate=2, "
        "device.precision=bf16, fewer channels or a lower resolution",
    )


def finish(trainer: Trainer, folder: RunFolder, chosen: Mapping[str, Any], *, shown: Mapping[str, Any]) -> None:
    """What the main process does after the last step.

    chosen: the settings of the group `diagnostic`. shown: what `choose_samples` found.
    """
    if trainer.stopped_by is None:
        diagnose(TrainedRun(folder, trainer), diagnostics(chosen))
    folder.record_end(how_ended(trainer), samples=shown)
    summarise(trainer, folder, weights=shown["weights"])


def choose_samples(trainer: Trainer) -> dict[str, Any]:
    """Shows samples of the better of the averaged generator and the one in training, where the run has ended.

    Returns which of the `weights` these are, ema or raw, and the number of either where both were measured.
    """
    values, evaluation = dict[Weights, float](), trainer.evaluation
    if trainer.stopped_by is None and trainer.images:
        values = evaluation.compare_raw(trainer.game, seed=trainer.seed)
    if not values or evaluation.suite is None:
        return {"weights": "ema"}
    name, better = evaluation.suite.ranking
    sign = 1 if better == "lower" else -1
    weights: Weights = "raw" if sign * values["raw"] < sign * values["ema"] else "ema"
    numbers = f"{name} {values['ema']:.4g} by ema, {values['raw']:.4g} by raw"
    trainer.logger.show(weights, why=numbers)
    log.info("samples.png: from weights=%s (%s)", weights, numbers)
    return {"weights": weights, name: values}


def _failure(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text if isinstance(error, Diverged) else f"failed: {text}"


def warn_of_time_limit(trainer: Trainer) -> None:
    """Warns where Slurm ends this job before train.max_time does."""
    end = number(os.environ, "SLURM_JOB_END_TIME", default=0)
    left = (end - time.time() + trainer.startup_seconds) / 60 if end else float("inf")
    if trainer.max_time is not None and trainer.max_time > left:
        log.warning("train.max_time=%g: Slurm ends this job %.0f minutes after its start", trainer.max_time, left)


def chosen_penalties(penalties: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Leaves out an experiment's settings of penalties that were not chosen: experiment=mnist penalty=none."""
    typed = {
        override.lstrip("+").split(".")[1] for override in overrides if override.lstrip("+").startswith("penalty.")
    }
    return {name: node for name, node in penalties.items() if name in typed or "_target_" in node}


def check_objective(trainer: Trainer, name: str | None, *, search: Direction | None) -> None:
    """Raises UserError where the run cannot end in the number that a sweep compares, or a search goes for the worst."""
    suite = trainer.evaluation.suite
    if suite is None:
        if search:
            raise UserError("hydra/sweeper: a search compares evaluations; give evaluation.every and a fitting metric")
        return
    labelled = ["diversity_within_classes"] if trainer.game.generator.num_classes else []
    known = [*suite.names, "diversity", *labelled]
    if name is not None and not any(fnmatch.fnmatchcase(name, each) for each in known):
        raise UserError(f"objective={name}: not among {', '.join(known)}{did_you_mean(name, known)}")
    name = name or suite.ranking[0]
    better = next((each.better for key, each in suite.numbers.items() if fnmatch.fnmatchcase(name, key)), "higher")
    wanted = "minimize" if better == "lower" else "maximize"
    if search not in (None, wanted):
        raise UserError(
            f"hydra.sweeper.direction={search}: the objective {name} is better where it is {better}; "
            f"type hydra.sweeper.direction={wanted}"
        )


def objective(trainer: Trainer, name: str | None) -> float | None:
    """Returns what a sweep compares: the last evaluation's number `name`, or the one that ranks checkpoints.

    None where nothing was measured. Raises UserError for a name that is not among the numbers.
    """
    suite, latest = trainer.evaluation.suite, trainer.evaluation.latest
    if not latest and (rows := RunFolder(trainer.checkpoints.folder.parent).read_evaluations(by="train")):
        latest = rows[-1]["values"]  # of a run that had ended before this start
    if not latest or suite is None:
        return None
    name = name or suite.ranking[0]
    if name not in latest:
        raise UserError(f"objective={name}: not among {', '.join(latest)}")
    return latest[name]


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
        raise UserError(NO_LABELS)
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
    runtime.choose_threads(game.multiply_adds() * settings["train"]["batch_size"] // group.world_size)
    log.info("device: %s", runtime)
    kind = settings["dataset"]["_target_"].rpartition(".")[2]
    log.info("data: %s %s, %s", kind, dataset.shape, _size(len(dataset)))
    log.info("parameters: generator %s, discriminator %s", *map(frozen_weights.count, (generator, discriminator)))
    ema = average(settings, game, dataset)
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
            health=build(settings["health"], key="health", remedies=Remedies.for_game(game)),
            logger=logger,
            discriminator=discriminator,
        )
    trainer: Trainer = build(
        settings["train"],
        key="train",
        game=game,
        update=update,
        optimizers={player: optimizer(settings, player, game.weights[player]) for player in PLAYERS},
        ema=ema,
        dataset=dataset,
        checkpoints=build(settings["checkpoint"], folder.checkpoints, key="checkpoint"),
        logger=logger,
        evaluation=evaluation,
        process_group=group,
        seed=seed,
    )
    if runtime.cuda_graph:
        level = runtime.cuda_graph_level
        cuda_graphs.apply(trainer, lambda: cuda_graphs.CudaRecorder(runtime.device), level=level)
    return trainer


def warn_of_lazy_penalties(loss: Loss, penalties: Mapping[str, Penalty], dataset: Dataset) -> None:
    """Warns of lazy penalties with a relativistic loss on points, with which training fails."""
    if loss.relativistic and len(dataset.shape) == 1:
        for name in (name for name, penalty in penalties.items() if penalty.interval > 1):
            log.warning("penalty.%s.interval: on points this loss fails with lazy penalties (R3GAN); take 1", name)


def resume(trainer: Trainer, folder: RunFolder, *, keep_threads: bool) -> bool:
    """Puts the trainer where the newest readable checkpoint stands; returns False where there is none yet.

    keep_threads: whether to compute with as many threads as before, so that the run goes on exactly.
    """
    checkpoints, group = trainer.checkpoints, trainer.process_group
    state = checkpoints.newest_on_all_processes(group)
    if state is None:
        if group.broadcast_from_main(checkpoints.files):
            raise UserError(f"{checkpoints.folder}: no checkpoint here can be read; move it away to start anew")
        log.warning("%s has no checkpoint yet: the run starts anew", folder.path)
        return False
    load(trainer, state)
    if keep_threads:  # the sums of a step are rounded by how they are divided
        torch.set_num_threads(state["threads"])
    step, minus_step, seconds, minus_seconds = group.all_reduce_max(
        [trainer.step, -trainer.step, trainer.seconds, -trainer.seconds]
    )
    if step + minus_step or seconds + minus_seconds:
        raise UserError(f"{checkpoints.folder}: not the same for all processes; it must be on a file system they share")
    log.info("resumed after %s images", f"{trainer.images:,}")
    return True


def load(trainer: Trainer, state: dict[str, Any]) -> None:
    """Puts the trainer where `state` was taken. Raises UserError where it does not fit."""
    try:
        if state["images"] != state["step"] * trainer.step_images:
            raise ValueError(f"{state['images']:,} images after {state['step']:,} steps of {trainer.step_images}")
        trainer.load_state_dict(state)
    except (RuntimeError, LookupError, ValueError, TypeError, OverflowError, UserError) as error:
        raise UserError(f"{trainer.checkpoints.path(state['images'])} does not fit this run: {error}") from None


def how_ended(trainer: Trainer) -> str:
    """Returns FINISHED, or by what the run was stopped."""
    by = trainer.stopped_by
    return FINISHED if by is None else f"stopped by {getattr(by, 'name', by)}"


def command_to_continue(trainer: Trainer, folder: RunFolder) -> str:
    """Returns what goes on with the run: to its end, or, where it is there, for as long again."""
    words = [f"gancli train {typed('resume', folder.path)}"]
    if trainer.length is not None and trainer.images >= trainer.length:
        words.append(f"train.images={2 * trainer.length:_}")
    if trainer.minutes is not None and trainer.seconds >= 60 * trainer.minutes:
        words.append(f"train.minutes={2 * trainer.minutes:g}")
    return " ".join(words)


def summarise(trainer: Trainer, folder: RunFolder, *, weights: Weights) -> None:
    """Logs where everything is and what to type next. weights: the better ones, to sample from."""
    latest = trainer.logger.latest
    log.info("%s: %s images in %.0f s", how_ended(trainer), f"{trainer.images:,}", trainer.seconds)
    if "game/value" in latest:
        log.info("value of the game %.3f (saddle point: -log 4 = -1.386)", latest["game/value"])
    evaluation = trainer.evaluation
    if evaluation.latest and evaluation.suite is not None:
        log.info("quality       %s", quality(trainer))
        log.info("evaluation took %.1f %% of the time", 100 * evaluation.seconds / max(trainer.seconds, 1e-9))
    log.info("run folder    %s", folder.path)
    log.info("picture       %s", folder.final_samples)
    log.info("its history   %s", folder.progress_animation)
    log.info("checkpoint    %s", trainer.checkpoints.path(trainer.images))
    log.info("next:")
    log.info("  %s", command_to_continue(trainer, folder))
    log.info("  gancli sample %s count=64%s", typed("run", folder.path), "" if weights == "ema" else " weights=raw")
    log.info("  gancli evaluate %s", typed("run", folder.path))
    if isinstance(trainer.logger, TrainingLogger) and "tensorboard" in trainer.logger.sinks:
        log.info("  tensorboard --logdir %s", shlex.quote(str(folder.path)))


def quality(trainer: Trainer) -> str:
    """Returns the last number that ranks checkpoints, beside that of real samples, and the best one, in words."""
    evaluation = trainer.evaluation
    assert evaluation.suite is not None
    name = evaluation.suite.ranking[0]
    text = f"{name} {evaluation.latest[name]:.4g}"
    real = None
    with contextlib.suppress(OSError, UserError):  # the data may be gone, and the run has ended well
        real = evaluation.of_real_samples() if trainer.stopped_by is None else None
    if real is not None:
        text += f", real samples against real ones {real[0]:.4g} ({real[1]:,} held out)"
    if evaluation.best is not None and evaluation.best_images < trainer.images:
        text += f"; at its best {evaluation.best:.4g}, after {evaluation.best_images:,} images: checkpoint=best"
    return text


def _size(length: int) -> str:
    return f"{length:,} samples" if length < 2**62 else "drawn afresh at every step"
