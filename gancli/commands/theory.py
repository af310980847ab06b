"""`gancli theory`: what the theory says of a run, or, in experiments of its own, of GANs at all."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from gancli import __version__, config
from gancli.atomic_files import atomic_write
from gancli.commands import train
from gancli.diagnostics.base import Run, Shown, diagnose
from gancli.errors import Diverged, UserError, did_you_mean, require_at_least
from gancli.reporting.html import page
from gancli.theory import CHAPTERS
from gancli.theory.base import Chapter, Experiment
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
TITLE = "What the theory of GANs says, measured"
INTRODUCTION = (
    "Two networks play a game: D tells real samples from generated ones, G makes samples that it cannot tell. "
    f"Every figure, picture and table below was computed by the runs listed under it (gancli {__version__})."
)
LENGTH = "Every run was {length:g} times as long as it is meant to be (length={length:g})."
GLANCE = "So this is for a glance, and no test of the theory."
SCHEMA = {
    "run": str | int | None,
    "out": str,
    "chapters": list[str],
    "seeds": int,
    "length": float,
    "jobs": int | None,
    "data": str | None,
    "trust": list[str],
}


def run(settings: dict[str, Any]) -> Path:
    """Looks at a run, or runs the experiments; returns the folder with the pictures, or the report.

    Raises UserError, OSError.
    """
    config.check(settings, SCHEMA)
    if settings["run"] is not None:
        return look(Path(str(settings["run"])).expanduser(), settings)
    require_at_least(1, seeds=settings["seeds"], jobs=settings["jobs"])
    if not 0 < settings["length"] <= 100:
        raise UserError(f"length={settings['length']}: a factor above 0, at most 100")
    unknown = [name for name in settings["chapters"] if name not in CHAPTERS]
    if unknown or not settings["chapters"]:
        near = did_you_mean(unknown[0], CHAPTERS) if unknown else ""
        raise UserError(f"chapters={settings['chapters']}: some of {', '.join(CHAPTERS)}{near}")
    out = Path(settings["out"]).expanduser()
    chapters = [CHAPTERS[name](seeds=settings["seeds"], length=settings["length"]) for name in settings["chapters"]]
    _perform(chapters, out / "runs", settings)
    report = out / "report.html"
    sections = [chapter.section(out / "runs") for chapter in chapters]
    introduction = [INTRODUCTION]
    if settings["length"] != 1:
        introduction += [LENGTH.format(**settings)] + [GLANCE] * (settings["length"] < 1)
    atomic_write(report, page(TITLE, " ".join(introduction), sections).encode())
    log.info("report        %s", report)
    return report


def look(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Every diagnostic that suits the newest checkpoint of the run in `folder`."""
    run_folder = RunFolder(folder)
    trained = run_folder.settings(trust=settings["trust"])
    trained = {**trained, "device": settings["device"], "dataset": config.moved(trained["dataset"], settings["data"])}
    trained["evaluation"] = {**trained["evaluation"], "every": None}
    trainer = train.assemble(trained, folder=run_folder)
    _, state = trainer.checkpoints.pick("last")
    train.load(trainer, state)
    found: dict[str, Shown] = diagnose(Run(run_folder, trainer), train.diagnostics(settings["diagnostic"]))
    left_out = settings["diagnostic"].keys() - found.keys()
    if left_out:
        log.info("left out, since they mean nothing here: %s", ", ".join(sorted(left_out)))
    log.info("pictures      %s", run_folder.theory)
    return run_folder.theory


def _perform(chapters: list[Chapter], folder: Path, settings: Mapping[str, Any]) -> None:
    """Trains what is not there yet, several runs at once, each in a process that serves for many."""
    experiments = {each.name: each for chapter in chapters for each in chapter.experiments()}
    jobs = settings["jobs"] or os.cpu_count() or 1
    log.info("%s runs, %s at once, in %s", len(experiments), jobs, folder)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(experiments)), mp_context=spawn, initializer=_quiet)
    try:
        # The longest first, so that none is left to run alone at the end.
        order = sorted(experiments.values(), key=lambda each: -each.minutes)
        waiting = {pool.submit(_experiment, each, folder / each.name, settings["length"]): each for each in order}
        for done, future in enumerate(as_completed(waiting), start=1):
            log.info("%s of %s: %s %s", done, len(waiting), waiting[future].name, future.result())
    except BrokenProcessPool:
        raise UserError(
            f"out={folder.parent}: a run's process was killed, for want of memory perhaps; say it again with a "
            "smaller jobs=: what is done is not done again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # not by `with`, which would call the waiting ones back


def _leave() -> None:
    """Ends this process with the one that started it, however that ended: its runs go on when it is said again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _quiet() -> None:
    import torch

    threading.Thread(target=_leave, daemon=True).start()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    os.environ["TQDM_DISABLE"] = "1"


def _experiment(experiment: Experiment, folder: Path, length: float) -> str:
    """One run, as `gancli train` and then perhaps `gancli evaluate` would make it; in a word how it ended."""
    from gancli.commands.evaluate import run as evaluate_run

    words = [*experiment.overrides, "device=cpu", "device.threads=1", "resume=auto"]
    settings = compose("train", words)
    settings["train"]["images"] = max(settings["train"]["batch_size"], round(settings["train"]["images"] * length))
    done, what = folder / "done.json", {"images": settings["train"]["images"], "overrides": words}
    if done.exists():
        if json.loads(done.read_text()) | {"ended": None} == what | {"ended": None}:
            return "was there"
        raise UserError(f"out={folder.parent.parent}: {folder.name} there is another one; choose another out=")
    ended = "finished"
    try:
        if train.run(settings, folder=folder, overrides=words).stopped_by is not None:
            raise UserError(f"{folder}: stopped by a signal; say it again, and it goes on")
    except Diverged as error:
        ended = f"ended: {str(error).splitlines()[0]}"
    else:
        if experiment.evaluate is not None:
            evaluate_run(
                compose("evaluate", [f"run='{folder}'", "device=cpu", "device.threads=1", *experiment.evaluate])
            )
    atomic_write(done, json.dumps(what | {"ended": ended}, indent=1).encode())
    return ended


def compose(command: str, overrides: list[str]) -> dict[str, Any]:
    """The resolved settings of a command line, as Hydra makes them."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        settings: Any = OmegaConf.to_container(hydra.compose(command, overrides), resolve=True)
    return dict(settings)
