#!/usr/bin/env python3
"""Sets every setting of every command, one at a time, to values that it may not take, and counts what comes of it.

    scripts/fuzz_settings.py                              # everything, and the table of docs/settings.md; minutes
    scripts/fuzz_settings.py train --accepted out.txt     # one command; what was accepted, to be read by a person

A setting must be refused by an error that names it, or a tiny run must go well with it. All cases run in this process,
whose memory is limited, and each for a limited time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

VALUES = (  # as typed
    *("-1", "0", "0.5", "1e9", "1e26", "1e400", "nan", "9223372036854775808"),
    *("true", "null", "abc", "'1'", "'?'", "''", "[]", "[1,2]", "{}"),
)
SECONDS = 5  # for one case
MEMORY = 4 << 30  # bytes of address space beyond what the process has after its first run
REFUSED, ACCEPTED, DIVERGED = "refused", "accepted", "diverged"
UNNAMED, CRASHED, HUNG = "refused without its name", "traceback", "longer than the limit"
PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

RUN = [  # two steps, each with everything that can be due
    *("device=cpu", "device.threads=1", "prior.dim=2", "train.batch_size=4", "train.images=8", "log.every=4"),
    *("log.pictures=8", "log.samples=4", "log.holdout=4", "evaluation.every=8", "evaluation.count=8"),
    *("evaluation.reference_count=8", "diagnostic.behaviour.least=24"),
]
POINTS = [
    *("dataset=gaussian_ring", "network=mlp", "network.generator.width=4", "network.discriminator.width=4"),
    *("metric=[modes]", "network.generator.depth=1", "network.discriminator.depth=1"),
]
LINE = ["dataset=distribution_1d", *POINTS[1:4], "metric=[line]"]
NETWORKS = ["network.generator.channels=4", "network.discriminator.channels=4", "metric=[fid]"]
SMALL = [*NETWORKS, "metric/features=random", "metric.features.width=4"]
FOLDER = ["dataset=folder", "dataset.path=photos", "dataset.resolution=8"]
IMAGES = [*SMALL, *FOLDER]
SCHEDULED = {  # key -> what it needs
    **{"optimizer.generator.lr": [], "penalty.r1.weight": [], "ema.half_life": []},
    **{"augment.std": ["augment=instance_noise"]},
}
SCHEDULES = {  # choice -> its mandatory settings
    **{"constant": {"value": 0.1}, "linear": {"start": 0.1}, "cosine": {"start": 0.1}},
    **{"burn_in": {"start": 0.2, "value": 0.1}},
}


def compositions() -> Iterator[tuple[str, list[str]]]:
    """Yields (command, overrides): together they have every setting of every choice of every group."""
    yield "train", POINTS
    yield "train", IMAGES
    for dataset in ("digits", "mnist", "stacked_mnist"):
        yield "train", [*SMALL, f"dataset={dataset}"]
    yield "train", [*SMALL, "dataset=celeba", "dataset.resolution=8"]
    for dataset in ("gaussian_grid", "swiss_roll"):
        yield "train", [*POINTS, f"dataset={dataset}", "metric=[line]"]
    yield "train", ["dataset=dirac", "network=dirac", "prior=uniform", "evaluation.every=null"]
    for distribution in ("normal", "uniform", "exponential", "gaussian_mixture"):
        yield "train", [*LINE, f"distribution@dataset.distribution={distribution}"]
    yield "train", [*LINE, "distribution@dataset.distribution=expression", "dataset.distribution.cdf='x'"]
    yield "train", [*LINE, "distribution@dataset.distribution=table", "dataset.distribution.path=table.txt"]
    for network in ("resnet", "r3gan"):
        yield "train", [*IMAGES, f"network={network}"]
    for prior in ("gaussian", "truncated_gaussian", "uniform", "inverse_cdf"):
        yield "train", [*POINTS, f"prior={prior}"]
    for optimizer in choices("optimizer"):
        yield "train", [*POINTS, f"optimizer@optimizer.generator={optimizer}"]
    for loss in choices("loss"):
        yield "train", [*POINTS, f"loss={loss}"]
    yield "train", [*POINTS, f"penalty=[{','.join(choices('penalty'))}]", "update=alternating"]
    for update in choices("update"):
        yield "train", [*POINTS, f"update={update}"]
    for augment in ("ada", "diffaugment"):
        yield "train", [*IMAGES, f"augment={augment}"]
    yield "train", [*POINTS, "augment=instance_noise"]
    yield "train", [*IMAGES, f"metric=[{','.join(name for name in choices('metric') if name != 'features')}]"]
    yield "train", [*IMAGES, "network/generator=fastgan", "network/discriminator=projected"]
    labelled = [*NETWORKS, *FOLDER, "dataset.labels=true"]
    yield "train", [*labelled, "metric/features=auto"]
    yield "train", [*labelled, "metric/features=classifier", "metric.features.images=300"]
    for features in ("inception", "efficientnet"):
        yield "train", [*NETWORKS, *FOLDER, f"metric/features={features}"]
    yield "train", [*LINE, f"diagnostic=[{','.join(choices('diagnostic'))}]"]
    for key, needs in SCHEDULED.items():
        for schedule in choices("schedule"):
            values = [f"{key}.{name}={value}" for name, value in SCHEDULES[schedule].items()]
            yield "train", [*POINTS, *needs, f"+schedule@{key}={schedule}", *values]
    yield "doctor", POINTS
    for form in ("grid", "png", "npz", "gif"):
        yield "sample", ["run=images", f"format={form}", "count=4", "overwrite=true", "device=cpu"]
    yield "sample", ["run=points", "count=4", "overwrite=true", "device=cpu"]
    small = ["device=cpu", "count=8", "reference_count=8"]
    yield "evaluate", ["run=images", *small]
    yield "evaluate", ["run=points", *small]
    yield "evaluate", ["folders=[photos,photos]", "metric=[fid]", *small]
    yield "report", ["run=images"]
    short = ["features=none", "limit=1", "starts=1", "steps=4"]
    yield "project", ["run=images", "image=photos", *short, "overwrite=true", "device=cpu"]
    yield "export", ["run=images", "formats=[]", "overwrite=true"]
    yield "theory", ["run=points"]
    yield "theory", ["seeds=1"]


def choices(group: str) -> list[str]:
    """Returns the names of the choices of a group, without `none`."""
    from gancli.config import config_dir

    return sorted(file.stem for file in (config_dir() / group).glob("*.yaml") if file.stem != "none")


@cache
def composed(command: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Returns the settings; compose them once and copy them for each case."""
    from gancli import config

    base = RUN if command in ("train", "doctor") else []
    return config.compose("train" if command == "doctor" else command, [*base, *overrides])


@cache
def typed(key: str, text: str) -> Any:
    """Returns the value that the command line reads from `key=text`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from gancli.overrides import as_typed

    return OverridesParser.create().parse_override(as_typed(f"{key}={text}", sweep=False)).value()


@dataclass(frozen=True)
class Case:
    """`key` set to the value that is typed as `text`, in the settings of `command` with `overrides`."""

    command: str
    overrides: tuple[str, ...]
    key: str
    text: str

    def settings(self) -> dict[str, Any]:
        """Returns the whole configuration of the case."""
        settings = copy.deepcopy(composed(self.command, self.overrides))
        *parents, last = self.key.split(".")
        node = settings
        for name in parents:
            node = node[name]
        node[last] = copy.deepcopy(typed(self.key, self.text))
        return settings

    def __str__(self) -> str:
        return f"gancli {self.command} {' '.join(self.overrides)} {self.key}={self.text}"


def cases(commands: set[str]) -> Iterator[Case]:
    """Yields every case once: a setting of a class is tried in the first composition that has it."""
    from gancli.config import leaves

    seen = set[tuple[str, ...]]()
    for command, overrides in compositions():
        if command not in commands:
            continue
        settings = composed(command, tuple(overrides))
        for key, _ in leaves(settings):
            kind = overrides[0] if command == "evaluate" else ""  # a run or folders
            identity = (command, kind, key, owner(settings, key))
            if identity not in seen:
                seen.add(identity)
                for text in VALUES:
                    yield Case(command, tuple(overrides), key, text)


def owner(settings: Mapping[str, Any], key: str) -> str:
    """Returns the class that the setting `key` belongs to; an empty string where it belongs to none."""
    node: Any = settings
    found = ""
    for name in key.split(".")[:-1]:
        node = node[name]
        found = node.get("_target_", found)
    return found


def outcome(case: Case) -> tuple[str, str]:
    """Returns what comes of the case, and the message or the traceback."""
    from gancli.errors import Diverged, UserError

    def stop(*_: Any) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            begin(case)
    except _Begun:
        pass
    except (UserError, OSError) as error:
        named = all(part in str(error) for part in case.key.split("."))
        return (REFUSED if named else UNNAMED), str(error)
    except Diverged as error:
        return DIVERGED, str(error)
    except _TooLong:
        return HUNG, traceback.format_exc()
    except Exception:
        return CRASHED, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ACCEPTED, ""


class _TooLong(BaseException):
    """The case has had its time."""


class _Begun(Exception):
    """What takes long would begin now: the measurements of the doctor, the experiments of a report."""


def begin(case: Case) -> None:
    """Does what the command does with the settings, cut short."""
    from gancli import cli
    from gancli.commands import doctor, evaluate, export, project, report, sample, theory, train
    from gancli.overrides import setting

    settings = case.settings()
    if case.key == "resume" and isinstance(settings["resume"], str):
        cli._continue_with_own_settings(case.command, [setting("resume", settings["resume"])])
    if case.command in ("train", "doctor"):
        if case.command == "train":
            train.run(settings, folder=Path("run"), overrides=[])
        else:
            doctor.run(settings, overrides=[], launcher={}, sweeper={}, runs=0)
    elif case.command == "theory":
        theory.run(settings)
    else:
        commands = {"sample": sample, "evaluate": evaluate, "report": report, "project": project, "export": export}
        commands[case.command].run(settings)


def prepare(replace: Callable[[Any, str, Any], None] = setattr, *, runs: Sequence[str] = ("images", "points")) -> None:
    """Makes what the cases read in the working folder, which must be empty, and shortens what commands do.

    replace: sets an attribute of a module or a class for as long as cases run. runs: the runs to make, which train
    cases do without.
    """
    import matplotlib.figure
    from PIL import Image

    from gancli.commands import doctor, theory, train
    from gancli.distributed.signals import Request, Signals
    from gancli.reporting import plots

    class Impatient(Signals):
        """Stops a run after its second step."""

        def poll(self, group: Any, seconds: float) -> tuple[float, Request]:
            self.steps = getattr(self, "steps", 0) + 1
            return seconds, Request(stop=signal.SIGTERM if self.steps > 2 else None)

    def refuse(*_: Any) -> None:
        raise _Begun

    replace(train, "Signals", Impatient)
    replace(theory, "_run_experiments", refuse)
    replace(doctor, "_assemble", refuse)
    for name in ("scatter", "histogram"):  # plots, and waiting for the disk, take longer than all the rest
        replace(plots, name, lambda *_, **settings: np.zeros((8, 8, 3), np.uint8))
    replace(matplotlib.figure.Figure, "draw", lambda *_: None)
    replace(os, "fsync", lambda _: None)
    rng = np.random.default_rng(0)
    for folder in ("photos/a", "photos/b", "data/celeba/img_align_celeba"):
        Path(folder).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(f"{folder}/{number}.png")
    Path("table.txt").write_text("0\n1\n3\n")
    write_mnist(Path("data/MNIST/raw"), rng)
    for name in runs:
        train.run(composed("train", tuple(IMAGES if name == "images" else POINTS)), folder=Path(name), overrides=[])


def write_mnist(folder: Path, rng: np.random.Generator) -> None:
    """Writes noise in MNIST's format, twenty images of each part, two of each class."""
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10
        for array, name in ((images, "images-idx3"), (labels, "labels-idx1")):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())


def remove(path: Path) -> None:
    """Deletes a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def limit_memory() -> None:
    """Lets this process take no more than `MEMORY` on top of what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def table(counts: Mapping[str, Counter[str]]) -> list[str]:
    """Returns the counts as a Markdown table."""
    kinds = [REFUSED, ACCEPTED, DIVERGED, UNNAMED, CRASHED, HUNG]
    lines = [f"| command | settings | tried | {' | '.join(kinds)} |", f"|{' --- |' * (len(kinds) + 3)}"]
    for command, counter in counts.items():
        tried = sum(counter[kind] for kind in kinds)
        numbers = [tried // len(VALUES), tried, *(counter[kind] for kind in kinds)]
        lines.append(f"| `{command}` | {' | '.join(f'{number:,}' for number in numbers)} |")
    return lines


def main() -> None:
    """Runs the cases, prints the table, and writes it into the page where every command was tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ["train", "doctor", "sample", "evaluate", "report", "project", "export", "theory"]
    parser.add_argument("commands", nargs="*", help=", ".join(commands))
    parser.add_argument("--accepted", type=Path, help="file for what was accepted")
    chosen = parser.parse_args()
    accepted, began = [], time.monotonic()
    counts: dict[str, Counter[str]] = {}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"HOME": folder, "TQDM_DISABLE": "1"}
        logging.disable()
        warnings.simplefilter("ignore")
        prepare()
        prepared = set(os.listdir())
        limit_memory()
        for case in cases(set(chosen.commands or commands)):
            kind, text = outcome(case)
            for name in set(os.listdir()) - prepared:
                remove(Path(name))
            counts.setdefault(case.command, Counter())[kind] += 1
            if kind in (ACCEPTED, DIVERGED):
                accepted.append(f"{case.key}={case.text}  [{kind}] {case}")
            elif kind != REFUSED:
                print(f"{kind}: {case}\n{text}", file=sys.stderr)
        os.chdir(home)
    lines = table(counts)
    print("\n".join(lines))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if chosen.accepted:
        chosen.accepted.write_text("\n".join(accepted) + "\n")
    if not chosen.commands:
        text = PAGE.read_text()
        head, _, rest = text.partition("| command | settings |")
        PAGE.write_text(head + "\n".join(lines) + "\n\n" + rest.partition("\n\n")[2])
    bad = sum(counter[kind] for counter in counts.values() for kind in (UNNAMED, CRASHED, HUNG))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
