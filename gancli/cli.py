"""The command line. Hydra composes and launches; torch is imported only when a command starts its work."""

from __future__ import annotations

import contextlib
import os
import sys

from gancli import __version__
from gancli.commands.sweeps import chosen_launcher, first_run, is_multirun
from gancli.distributed.launch import process_info

COMMANDS = {
    "train": "train a GAN and leave a run folder with checkpoints, pictures and logs",
    "sample": "make images with the generator of a run folder",
    "evaluate": "measure the samples of a run, or one folder of images against another",
    "doctor": "estimate time and memory of `gancli train` with the same arguments",
    "report": "put the runs of a sweep into one table and one page",
    "theory": "write a report of experiments that test the theory of GANs, or diagnose one run",
}
NO_OUTPUT = [  # for a process that is not the main process: Hydra makes no folder and no log
    *("hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=.", "hydra.output_subdir=null"),
    *("hydra/job_logging=disabled", "hydra/hydra_logging=disabled"),
]
PRINT_FLAGS = {"--cfg", "-c", "--help", "-h", "--info", "-i"}  # with which Hydra prints and runs nothing
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
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit status: 0, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            USAGE.format(
                version=__version__, commands="\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
            )
        )
        return 0
    if argv[0] == "--version":
        print(f"gancli {__version__}")
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


def _dispatch(command: str, overrides: list[str]) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gancli.commands.hydra_app import exit_status
    from gancli.errors import Diverged, UserError

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its exceptions, which are worded below
    try:
        try:
            if not PRINT_FLAGS & set(overrides):
                overrides = _replace_latest(command, overrides)
            if command == "train":
                overrides = _as_sweep_of_one(_require_fixed_folder(_work_in_resumed_folder(overrides)))
        except UserError as error:
            return _exit_with_error(str(error))
        _hydra(command, overrides)
    except (HydraException, OmegaConfBaseException) as error:  # some of them are OSErrors too
        from gancli.commands.messages import explain

        return _exit_with_error(explain(error, command, overrides))
    except BrokenPipeError:  # the reader of a help text, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, Diverged, OSError) as error:
        return exit_status(error)
    except ValueError as error:
        if isinstance(error.__cause__, OSError):  # logging could not open its file
            return exit_status(error.__cause__)
        return _plugin_error(error, overrides)
    except RuntimeError as error:
        return _plugin_error(error, overrides)
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


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
    # After the user's own settings, so that these win, and before a flag's value, such as `--cfg job`.
    last = max((index for index, word in enumerate(overrides, start=1) if "=" in word and word[0] != "-"), default=0)
    sys.argv = [f"gancli {command}", *overrides[:last], *added, *overrides[last:]]
    task = hydra_app.doctor(runs) if command == "doctor" else getattr(hydra_app, command)
    name = "train" if command == "doctor" else command
    try:
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


def _work_in_resumed_folder(overrides: list[str]) -> list[str]:
    """Lets Hydra work in the folder of `resume=<run folder>`. Raises UserError where it is no run folder."""
    given = [index for index, text in enumerate(overrides) if text.startswith("resume=")]
    which = overrides[given[-1]].partition("=")[2].strip("'\"") if given else "never"
    if which in ("auto", "never"):
        return overrides
    from pathlib import Path

    from gancli.errors import UserError

    folder = Path(which).expanduser()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={which}: not a run folder, it has no config.yaml; or say resume=auto or resume=never")
    if is_multirun(overrides):
        raise UserError(f"resume={which}: continues one run, so not with -m; a sweep goes on with resume=auto")
    quoted = str(folder).replace("'", "\\'")
    return [*overrides[: given[-1] + 1], f"hydra.run.dir='{quoted}'", *overrides[given[-1] + 1 :]]


def _require_fixed_folder(overrides: list[str]) -> list[str]:
    """Refuses what torchrun could not restart: its next attempt would work in a folder named by another time."""
    key = "hydra.sweep.dir" if is_multirun(overrides) else "hydra.run.dir"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and not PRINT_FLAGS & set(overrides)
    if restarts and not any(text.startswith(f"{key}=") for text in overrides):
        from gancli.errors import UserError

        raise UserError(f"--max-restarts: a new attempt goes on where the last one saved; give {key}=FOLDER for that")
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


def _plugin_error(error: Exception, overrides: list[str]) -> int:
    """Words an error of Hydra's plugins; raises any other error again, which is a bug."""
    from gancli.commands.messages import launcher_error, null_group, raised_in

    if raised_in(error, "optuna"):  # it asks for the best of numbers that were all NaN
        return _exit_with_error("hydra/sweeper: no run of this search ended in a number to compare; see objective=…")
    text = null_group(overrides) or launcher_error(error)
    if text is None:
        raise error
    return _exit_with_error(text)


def _exit_with_error(text: str) -> int:
    from gancli.commands.hydra_app import report_error

    report_error(f"error: {text}")
    return 2
