"""`run=latest`, `resume=latest` and `init=latest`: the run with the newest checkpoint. Does not import torch."""

from __future__ import annotations

import sys
from pathlib import Path

from gancli.distributed.launch import process_info
from gancli.errors import UserError
from gancli.overrides import setting
from gancli.training.run_folder import RunFolder

OUTPUTS = Path("outputs")
REPORT_MARK = ".theory"  # a file in the folder of a report, whose runs are experiments


def replace_latest(command: str, words: list[str]) -> list[str]:
    """Returns the words with a run folder in place of each `latest`, and prints which one it is. Raises UserError."""
    return [
        _replaced(command, word) if word in ("run=latest", "resume=latest", "init=latest") else word for word in words
    ]


def _replaced(command: str, word: str) -> str:
    folder = latest_run()
    if folder is None:
        raise UserError(f"{word}: no run below {OUTPUTS.absolute()} has a checkpoint; name a run folder")
    if command == "report" and (folder.parent / "multirun.yaml").is_file():
        folder = folder.parent  # the sweep that the run belongs to
    if process_info().is_main_process:
        print(f"gancli: {word} is {folder}", file=sys.stderr, flush=True)
    return setting(word.partition("=")[0], folder)


def latest_run() -> Path | None:
    """Returns the run folder below `outputs` whose newest checkpoint is the newest of all; None where there is none."""
    files = {file: file.parent.parent for file in OUTPUTS.glob("**/checkpoints/*.pt")}
    files = {file: run for file, run in files.items() if RunFolder(run).exists() and not is_experiment(run, OUTPUTS)}
    newest = max(files, key=_written, default=None)
    return None if newest is None else files[newest]


def is_experiment(run: Path, top: Path) -> bool:
    """Whether the run is one of those that `gancli theory` made for its report in a folder below `top`."""
    between = run.relative_to(top).parents[:-1]
    return any((top / folder / REPORT_MARK).is_file() for folder in between)


def _written(file: Path) -> int:
    """Returns when the file was written, in ns; -1 where a run in progress has deleted it meanwhile."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return -1
