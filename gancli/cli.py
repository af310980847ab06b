"""The command line. Hydra composes and launches; torch is imported only when a command starts its work."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from gancli import __version__
from gancli.commands.sweeps import chosen_launcher, first_run, flags_last, is_multirun
from gancli.distributed.launch import is_restartable, process_info, was_restarted
from gancli.errors import UserError
from gancli.reporting.streams import prepare_streams, print_lines

COMMANDS = {
    "train": "train a GAN and leave a run folder with checkpoints, pictures and logs",
    "sample": "make images with the generator of a run folder",
    "evaluate": "measure the samples of a run, or one folder of images against another",
    "doctor": "estimate time and memory of `gancli train` with the same arguments",
    "report": "put runs side by side into one table and one page",
    "export": "write a run's generator as safetensors, ONNX and a torch graph, with a model card",
    "project": "find the noise whose sample is nearest to a given image",
    "theory": "write a report of experiments that test the theory of GANs, or diagnose one run",
}
NO_OUTPUT = [  # for a process that is not the main process: Hydra makes no folder and no log
    *("hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=.", "hydra.output_subdir=null"),
    *("hydra/job_logging=disabled", "hydra/hydra_logging=disabled"),
]
PRINT_FLAGS = {"--cfg", "--help", "--hydra-help", "--info"}  # with which Hydra prints and runs nothing
WAIT_POLICIES = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}  # of OpenMP; the user's own choice stays
USAGE = """gancli {version}: train generative adversarial networks from composed YAML

usage: gancli COMMAND [group=choice …] [key=value …]

commands:
{commands}

examples:
  gancli train                                   8x8 digits on the CPU, in minutes
  gancli train dataset=folder dataset.path=photos dataset.resolution=64
  gancli sample run=outputs/train/DATE/TIME count=64
  gancli evaluate run=outputs/train/DATE/TIME
  gancli theory                                  a report of experiments, in minutes

`gancli COMMAND --help` lists its groups, settings and more examples; `gancli --version` the version.
"""


def main() -> None:
    """Entry point of `gancli` and `python -m gancli`; ends the process with the command's exit status."""
    if not WAIT_POLICIES & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported; see `Runtime`
    prepare_streams()
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit status: 0, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    if not argv or argv[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
        print_lines([USAGE.format(version=__version__, commands=commands)])
        return 0
    if argv[0] == "--version":
        print_lines([f"gancli {__version__}"])
        return 0
    if argv[0] in ("-sc", "--shell-completion"):
        return _complete(argv)
    if argv[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        print(f"gancli: error: unknown command {argv[0]!r}; {hint}", file=sys.stderr)
        return 2
    return _dispatch(argv[0], argv[1:])


def _dispatch(command: str, words: list[str]) -> int:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its exceptions, which are worded below
    try:
        process_info()
    except UserError as error:  # not by `report_error`, which asks which process this is
        print(f"gancli: error: {error}", file=sys.stderr)
        return 2
    try:
        words = words_for_hydra(command, words)
        _hydra(command, words)
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        return _status(error, command, words)
    return 0


def _status(error: Exception, command: str, words: list[str]) -> int:
    """Reports an error of the user's and returns the exit status; raises any other error again, which is a bug."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gancli.commands import messages
    from gancli.commands.hydra_app import exit_status, report_error, was_reported
    from gancli.errors import Diverged

    cause = error.__cause__ if isinstance(error, ValueError) else None
    if was_reported(error):
        return 2 if isinstance(error, (UserError, OSError)) else 1
    if isinstance(error, (HydraException, OmegaConfBaseException)):  # some of them are OSErrors too
        text: str | None = messages.explain(error, command, words)
    elif isinstance(error, BrokenPipeError):  # the reader of a help text, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    elif isinstance(error, (UserError, Diverged, OSError)):
        return exit_status(error)
    elif isinstance(cause, OSError):  # logging could not open its file
        return exit_status(cause)
    else:
        text = messages.plugin_error(error, words) if isinstance(error, (RuntimeError, ValueError)) else None
    if text is None:
        raise error
    report_error(f"error: {text}")
    return 2


def words_for_hydra(command: str, words: list[str]) -> list[str]:
    """Returns the words of a command line such that Hydra does what they say. Raises UserError, HydraException."""
    from gancli.commands.messages import refuse_early
    from gancli.overrides import as_typed

    words = flags_last(words)
    sweep = is_multirun(words)
    words = [word if word.startswith("-") else as_typed(word, sweep=sweep) for word in words]
    refuse_early(command, words)
    if not PRINT_FLAGS & set(words):
        words = _replace_latest(command, words)
    if command in ("train", "doctor"):
        words = _continue_with_own_settings(command, words)
    return _as_sweep_of_one(_require_fixed_folder(words)) if command == "train" else words


def _hydra(command: str, overrides: list[str]) -> None:
    import hydra

    from gancli.commands import help, hydra_app
    from gancli.commands.hydra_callbacks import command_after_sweep
    from gancli.config import config_dir

    text = help.printed(command, overrides)
    if text is not None:
        print(text, flush=True)
        return
    main = process_info().is_main_process
    added = [] if main else NO_OUTPUT
    if not main and is_multirun(overrides):
        added = [*NO_OUTPUT, f"hydra.sweep.dir='{_temporary_folder()}'"]
    if command == "doctor":
        overrides, runs = first_run(overrides)
        added = [*(NO_OUTPUT[:4] if main else NO_OUTPUT), "hydra/help=doctor"]
        added += ["hydra/job_logging=console"] if main else []
    # After the user's own settings, so that these win, and before the flags.
    last = next((index for index, word in enumerate(overrides) if word.startswith("--")), len(overrides))
    sys.argv = [f"gancli {command}", *overrides[:last], *added, *overrides[last:]]
    task = hydra_app.doctor(runs) if command == "doctor" else getattr(hydra_app, command)
    name = "train" if command == "doctor" else command
    try:
        with hydra_app.errors_told_once():
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(task)()
    finally:
        after = command_after_sweep()
        if after is not None and main:
            print(f"gancli: the runs of this sweep side by side: {after}", file=sys.stderr)


def _temporary_folder() -> str:
    """Returns a folder for what Hydra writes of a sweep in every process; it is deleted with this process."""
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="gancli-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _replace_latest(command: str, overrides: list[str]) -> list[str]:
    """Replaces `latest` in run=latest, resume=latest and init=latest. Raises UserError."""
    if not any(word.endswith("=latest") for word in overrides):
        return overrides
    from gancli.commands.latest_run import replace_latest

    return replace_latest(command, overrides)


def _continue_with_own_settings(command: str, words: list[str]) -> list[str]:
    """Lets `resume=<run folder>` work in that folder, on any setting that the run has. Raises UserError."""
    given = [word.partition("=")[2] for word in words if word.startswith("resume=")]
    if not given or set(given[-1].split(",")) <= {"auto", "never"}:
        return words
    if is_multirun(words):
        raise UserError(f"resume={given[-1]}: continues one run, so not with -m; a sweep goes on with resume=auto")
    from gancli.config import leaves
    from gancli.files.user_paths import expand
    from gancli.overrides import last_value, setting
    from gancli.training.run_folder import RunFolder

    which = last_value(words, "resume")
    if which is None:  # null, which the check of the settings refuses
        return words
    folder = RunFolder(expand(which, key="resume"))
    if not folder.exists():
        raise UserError(f"resume={which}: not a run folder, it has no config.yaml; or say resume=auto or resume=never")
    # Hydra composes the default choices, which may lack keys of the run's own, so these are forced in. The folder may
    # come from elsewhere: of its configuration only the names of keys count here.
    own = {key for key, _ in leaves(folder.read_config()) if "." in key}
    words = [f"++{word}" if word.partition("=")[0] in own else word for word in words]
    if command == "doctor":
        return words
    elsewhere = last_value(words, "hydra.run.dir")
    if elsewhere is not None and Path(elsewhere).resolve() != folder.path.resolve():
        raise UserError(f"hydra.run.dir={elsewhere}: resume={which} goes on in that run's own folder; leave one out")
    return [setting("hydra.run.dir", folder.path), *words]


def _require_fixed_folder(overrides: list[str]) -> list[str]:
    """Refuses what torchrun could not restart: its next attempt would work in a folder named by another time."""
    key = "hydra.sweep.dir" if is_multirun(overrides) else "hydra.run.dir"
    if PRINT_FLAGS & set(overrides) or any(text.startswith(f"{key}=") for text in overrides):
        return overrides
    if is_restartable():
        raise UserError(f"--max-restarts: a new attempt goes on where the last one saved; give {key}=FOLDER for that")
    if was_restarted():
        raise UserError(
            f"this job was started again, and would begin a new run; give {key}=FOLDER in the job's command for a run "
            "that goes on, and continue the one that was saved with resume=FOLDER"
        )
    return overrides


def _as_sweep_of_one(overrides: list[str]) -> list[str]:
    """A launcher, such as Slurm's, takes sweeps only: makes one run a sweep of one, in the folder that it was given."""
    if chosen_launcher(overrides) is None or is_multirun(overrides) or PRINT_FLAGS & set(overrides):
        return overrides
    given = [text.partition("=")[2] for text in overrides if text.startswith("hydra.run.dir=")]  # not read in a sweep
    folder = [f"hydra.sweep.dir={given[-1]}", "hydra.sweep.subdir=."] if given else []
    return [*(text for text in overrides if not text.startswith("hydra.run.dir=")), *folder, "--multirun"]


def _complete(argv: list[str]) -> int:
    """Completes a command line in a shell: commands from here, everything after them from Hydra."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if "query=" in " ".join(argv) and (len(words) < 2 or (len(words) == 2 and not line.endswith(" "))):
        print(" ".join(COMMANDS))
        return 0
    command = words[1] if len(words) > 1 and words[1] in COMMANDS else "train"
    program = os.path.basename(sys.argv[0])
    os.environ["COMP_LINE"] = line.replace(f" {command}", "", 1)
    import hydra

    from gancli.commands import hydra_app
    from gancli.config import config_dir

    sys.argv = [program, *argv]
    with contextlib.suppress(SystemExit):
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(hydra_app.train)()
    return 0
