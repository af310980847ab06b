"""`gancli theory`: diagnostics of one run, or a report of experiments that test the theory of GANs."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gancli import __version__, config
from gancli.commands import train
from gancli.commands.check_settings import check_settings
from gancli.commands.latest_run import REPORT_MARK
from gancli.diagnostics.base import TrainedRun, diagnose
from gancli.errors import Diverged, UserError, did_you_mean, require_at_least, require_between
from gancli.files.atomic import atomic_write
from gancli.files.user_paths import expand
from gancli.overrides import setting
from gancli.reporting.html import render_page
from gancli.theory import CHAPTERS
from gancli.theory.base import DONE_FILE, MAX_SEEDS, Chapter, Experiment, read_done
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)
TITLE = "What the theory of GANs says, measured"
INTRODUCTION = (
    "Two networks play a game: D tells real samples from generated ones, G makes samples that it cannot tell. "
    "Each chapter first says what the theory is, with drawings of its formulas. What stands below “Measured” was "
    f"computed by the runs that are listed at the end of the chapter (gancli {__version__})."
)
LENGTH_NOTE = "Every run was {length:g} times as long as it is meant to be (length={length:g})."
SHORTENED_NOTE = "Runs this short are a preview, not a test of the theory."
SCHEMA = {
    "run": str | None,
    "out": str,
    "chapters": list[str],
    "seeds": int,
    "length": float,
    "jobs": int | None,
    "data": str | None,
    "trust": list[str],
}


def run(settings: dict[str, Any]) -> Path:
    """Diagnoses one run, or runs the experiments and writes the report.

    Returns the folder of the diagnostics, or the report. Raises UserError, OSError.
    """
    config.check(settings, SCHEMA)
    require_at_least(1, seeds=settings["seeds"], jobs=settings["jobs"])
    require_between(1, MAX_SEEDS, seeds=settings["seeds"])
    if not 0 < settings["length"] <= 100:
        raise UserError(f"length={settings['length']}: a factor above 0, at most 100")
    unknown = [name for name in settings["chapters"] if name not in CHAPTERS]
    if unknown or not settings["chapters"]:
        hint = did_you_mean(unknown[0], CHAPTERS) if unknown else ""
        raise UserError(f"chapters={settings['chapters']}: choose from {', '.join(CHAPTERS)}{hint}")
    if settings["run"] is not None:
        return diagnose_run(expand(settings["run"], key="run"), settings)
    out = expand(settings["out"], key="out")
    chapters = [CHAPTERS[name](seeds=settings["seeds"], length=settings["length"]) for name in settings["chapters"]]
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / REPORT_MARK, b"")
    _run_experiments(chapters, out / "runs", settings)
    sections = [chapter.section(out / "runs") for chapter in chapters]
    introduction = [INTRODUCTION]
    if settings["length"] != 1:
        introduction += [LENGTH_NOTE.format(**settings)] + [SHORTENED_NOTE] * (settings["length"] < 1)
    report = out / "report.html"
    atomic_write(report, render_page(TITLE, " ".join(introduction), sections).encode())
    log.info("report        %s", report)
    return report


def diagnose_run(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Diagnoses the newest checkpoint of the run in `folder`; returns the folder of the results."""
    run_folder = RunFolder(folder)
    trained = run_folder.settings(trust=settings["trust"])
    trained = {**trained, "device": settings["device"], "dataset": config.moved(trained["dataset"], settings["data"])}
    trained["evaluation"] = {**trained["evaluation"], "every": None}
    trained["log"] = {**trained["log"], "sinks": ["jsonl"]}  # nothing is logged; others may not be installed here
    check_settings(trained, resuming=True)
    trainer = train.assemble(trained, folder=run_folder)
    file, state = trainer.checkpoints.pick("last")
    train.load(trainer, state)
    log.info("diagnosing %s by %s", file, ", ".join(settings["diagnostic"]))
    results = diagnose(TrainedRun(run_folder, trainer), train.diagnostics(settings["diagnostic"]))
    skipped = settings["diagnostic"].keys() - results.keys()
    if skipped:
        log.info("skipped, as not defined for this run: %s", ", ".join(sorted(skipped)))
    log.info("results       %s", run_folder.theory)
    return run_folder.theory


def _run_experiments(chapters: list[Chapter], folder: Path, settings: Mapping[str, Any]) -> None:
    """Runs those experiments that `folder` does not hold yet, several at once in worker processes."""
    experiments = {experiment.name: experiment for chapter in chapters for experiment in chapter.experiments()}
    jobs = settings["jobs"] or os.cpu_count() or 1
    log.info("%s runs, %s at once, in %s", len(experiments), jobs, folder)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(experiments)), mp_context=spawn, initializer=_initialize_worker)
    try:
        # The longest first, so that no long run is left to run alone at the end.
        ordered = sorted(experiments.values(), key=lambda experiment: -experiment.minutes)
        futures = {
            pool.submit(run_experiment, experiment, folder / experiment.name, length=settings["length"]): experiment
            for experiment in ordered
        }
        with tqdm(total=len(futures), unit="run", disable=not sys.stderr.isatty()) as bar:
            for count, future in enumerate(as_completed(futures), start=1):
                name, ended = futures[future].name, future.result()
                bar.set_postfix_str(f"{name} {ended}")
                bar.update()
                if bar.disable:
                    log.info("%s of %s: %s %s", count, len(futures), name, ended)
    except BrokenProcessPool:
        raise UserError(
            f"out={folder.parent}: the process of a run was killed, perhaps for lack of memory; repeat the command "
            "with a smaller jobs=: finished runs are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # unlike `with`, which would wait for the runs not yet started


def _initialize_worker() -> None:
    import torch

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    os.environ["TQDM_DISABLE"] = "1"


def _exit_with_parent() -> None:
    """Ends this process as soon as its parent has ended, in whatever way; its run can be resumed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_experiment(experiment: Experiment, folder: Path, *, length: float) -> str:
    """Trains and evaluates one run as `gancli train` and `gancli evaluate` would; returns how it ended.

    length: factor on the length of the run. A finished run is not repeated. Raises UserError, OSError.
    """
    overrides = [*experiment.overrides, "device=cpu", "device.threads=1", "resume=auto"]
    settings = config.compose("train", overrides)
    settings["train"]["images"] = max(settings["train"]["batch_size"], round(settings["train"]["images"] * length))
    content = {"images": settings["train"]["images"], "overrides": overrides}
    if done := read_done(folder):
        if done | {"ended": None} == content | {"ended": None}:
            return "already there"
        raise UserError(
            f"out={folder.parent.parent}: {folder.name} there has other settings or another length; choose another out="
        )
    ended = "finished"
    try:
        if train.run(settings, folder=folder, overrides=overrides).stopped_by is not None:
            raise UserError(f"{folder}: stopped by a signal; repeat the command to continue")
    except Diverged as error:
        ended = f"ended: {str(error).splitlines()[0]}"
    else:
        if experiment.evaluate is not None:
            from gancli.commands.evaluate import measure  # needed by few runs

            words = [setting("run", folder), "device=cpu", "device.threads=1", *experiment.evaluate]
            list(measure(config.compose("evaluate", words)))
    atomic_write(folder / DONE_FILE, json.dumps(content | {"ended": ended}, indent=1).encode())
    return ended
