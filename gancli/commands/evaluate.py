"""`gancli evaluate`: measures the samples of runs, as a table, as JSON and in TensorBoard."""

from __future__ import annotations

import itertools
import json
import logging
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gancli import config
from gancli.build import build, is_trusted, nodes, resolve
from gancli.datasets.base import Dataset
from gancli.datasets.folder import ImagesToMeasure
from gancli.device import Runtime
from gancli.distributed.process_group import join_process_group
from gancli.errors import InvalidTensorFile, UserError, printable, require_at_least
from gancli.files.atomic import atomic_write
from gancli.files.json_files import Row
from gancli.files.user_paths import cache_folder, expand
from gancli.inference.loading import load_generator
from gancli.inference.sampling import generate, noise_rows
from gancli.metrics.base import Number, Samples, reference_samples
from gancli.metrics.memorisation import nearest_images
from gancli.metrics.suite import MetricSuite, build_suite
from gancli.networks.base import Discriminator
from gancli.progress import progress
from gancli.reporting import image_grids
from gancli.reporting.html import Table
from gancli.reporting.streams import print_lines, terminal_width
from gancli.training.checkpoint import Checkpoints, change_of_data, read
from gancli.training.run_folder import RunFolder, provenance

log = logging.getLogger(__name__)
SCHEMA = {
    "run": str | list[str] | None,
    "folders": list[str] | None,
    "resolution": int | list[int] | None,
    "checkpoint": str | int,
    "weights": Literal["ema", "raw"],
    "out": str | None,
    "overwrite": bool,
    "count": int | None,
    "seed": int,
    "reference": Literal["train", "holdout"],
    "reference_count": int | None,
    "data": str | None,
    "cache": str | None,
    "batch_size": int,
    "trust": list[str],
}
_OF_FOLDERS = {"out": None, "overwrite": False, "resolution": None}  # settings with their defaults
_OF_RUNS = {"checkpoint": "last", "weights": "ema", "seed": 0, "data": None}
_AUTO_FEATURES = {"_target_": "gancli.metrics.features.Auto"}  # where neither the user nor a run chose any


def run(settings: dict[str, Any], *, overrides: Sequence[str] = ()) -> None:
    """Evaluates what `settings` ask for and prints a table of it, also of what was measured before an error.

    overrides: the words of the command line. Raises UserError, OSError.
    """
    rows: list[Row] = []
    numbers: dict[str, Number] = {}
    try:
        for row, described in measure(settings, chosen=any(word.startswith("metric=") for word in overrides)):
            numbers |= described
            if row["samples"] != "real" or row not in rows:  # several runs may have the same real samples
                rows.append(row)
    finally:
        if rows:
            width = terminal_width()
            print_lines([*table(rows, numbers, width=width), "", *_legend(rows, numbers, width=width)])


def measure(settings: dict[str, Any], *, chosen: bool = False) -> Iterator[tuple[Row, dict[str, Number]]]:
    """Yields each row when it is measured and before it is kept, and what its numbers say, by name.

    chosen: whether the user named the metrics. Raises UserError, OSError.
    """
    config.check(settings, SCHEMA)
    require_at_least(2, count=settings["count"], reference_count=settings["reference_count"])
    require_at_least(1, batch_size=settings["batch_size"], resolution=settings["resolution"])
    paths = settings["run"] if isinstance(settings["run"], list) else [settings["run"]]
    if paths in ([], [None]) and settings["folders"] is None:
        raise UserError("run=…: name one or more run folders, or instead folders=[generated,real]")
    if settings["run"] is not None and settings["folders"] is not None:
        raise UserError(
            f"folders={settings['folders']}: not together with run={settings['run']}; leave one of them out"
        )
    _check_place(settings)
    settings = {**settings, "metric": settings.get("metric", {}), "chosen": chosen}  # no such key for metric=[]
    if not settings["metric"].keys() - {"features"}:
        raise UserError("metric=[]: name at least one, such as metric=[fid]")
    runtime = build(settings["device"], key="device", process_group=join_process_group())
    if settings["folders"] is not None:
        yield from _measure_folders(settings, runtime)
        return
    settings["count"] = settings["count"] or 10_000
    settings["reference_count"] = settings["reference_count"] or 60_000
    parts = ["prior", "network.generator", "dataset"]
    if "features" not in settings["metric"]:
        parts.append("metric.features")
    folders = [RunFolder(expand(path, key="run")) for path in paths]
    # All folders are read before the first one is evaluated, which may take long.
    trained = [folder.settings(trust=settings["trust"], parts=tuple(parts)) for folder in folders]
    for pair in zip(folders, trained, strict=True):
        yield from _measure_run(*pair, settings, runtime)


def _check_place(settings: Mapping[str, Any]) -> None:
    """Raises UserError for settings that are not for runs, or not for folders, and where `out` cannot be written."""
    for name, default in _OF_FOLDERS.items() if settings["folders"] is None else _OF_RUNS.items():
        if settings[name] != default:
            where = "a run, whose numbers go into its folder" if settings["folders"] is None else "folders"
            raise UserError(f"{name}={settings[name]}: not for {where}; leave it out")
    if settings["out"] is not None:
        out = expand(settings["out"], key="out")
        if out.is_dir() or (out.exists() and not settings["overwrite"]):
            raise UserError(f"out={out}: exists already; overwrite=true replaces a file, or choose another out")
        out.parent.mkdir(parents=True, exist_ok=True)


def table(rows: Sequence[Row], numbers: Mapping[str, Number], *, width: int | None = None) -> list[str]:
    """Returns lines of text: a row for each of `rows`, a column for each number but those of single classes.

    numbers: what the numbers say, by name. A standard deviation stands behind its number. width: of the terminal.
    """
    names = _columns(rows, numbers)
    lines = [[row["of"], *(_cell(row, name) for name in names)] for row in rows]
    return Table(["", *(_heading(name, numbers) for name in names)], lines).lines(width)


def _columns(rows: Sequence[Row], numbers: Mapping[str, Number]) -> list[str]:
    measured = {name for row in rows for name in row["values"]}
    return [name for name in numbers if name in measured and not name.endswith("_std")]


def _heading(name: str, numbers: Mapping[str, Number]) -> str:
    return f"{name} {'↓' if numbers[name].better == 'lower' else '↑'}"


def _cell(row: Row, name: str) -> str:
    values = row["values"]
    if name not in values:
        return "-"
    text = f"{values[name]:.4g}"
    if f"{name}_std" in values:
        text += f" ± {values[f'{name}_std']:.2g}"
    return f"{text} ({row['worst_class']})" if name.endswith("_class_worst") and "worst_class" in row else text


def _legend(rows: Sequence[Row], numbers: Mapping[str, Number], *, width: int | None) -> list[str]:
    """Returns a line on the signs in the table and one for the meaning of each column, broken at `width`."""
    names = _columns(rows, numbers)
    signs = ["↓ lower is better", "↑ higher is better"]
    if any(f"{name}_std" in row["values"] for row in rows for name in names):
        signs.append("± standard deviation over subsets")
    indent = 2 + max(map(len, names), default=0)
    lines = [", ".join(signs), *(name.ljust(indent) + numbers[name].meaning for name in names)]
    if width is None:
        return lines
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent=indent * " ")]


def _measure_run(
    folder: RunFolder, trained: dict[str, Any], settings: Mapping[str, Any], runtime: Runtime
) -> Iterator[tuple[Row, dict[str, Number]]]:
    checkpoints = _checkpoints(folder, settings["checkpoint"])  # read one at a time: all may not fit in memory
    first = next(checkpoints, None)
    if first is None:
        raise UserError(f"checkpoint={settings['checkpoint']}: none in {folder.checkpoints} can be read")
    dataset = build(config.moved(trained["dataset"], settings["data"]), key="dataset")
    features = trained.get("metric", {}).get("features")  # as in the evaluations during training, to compare with
    against = _discriminator(folder, trust=settings["trust"])
    labelled = bool(first[1]["num_classes"])
    if labelled:
        _check_classes(folder, first[1], dataset)
    change = change_of_data(first[1], dataset)
    if change is not None:
        reason = f"{change}: some that are held out now may have been trained on"
        metrics = {name: node for name, node in settings["metric"].items() if name != "memorisation"}
        if not metrics.keys() - {"features"}:
            raise UserError(f"metric=[memorisation]: {reason}; data=… names another place where the old ones lie")
        log.warning("%s%s", reason, "" if len(metrics) == len(settings["metric"]) else ", so memorisation is left out")
        settings = {**settings, "metric": metrics}
    suite = _suite(settings, dataset, runtime, features=features, labelled=labelled, discriminator=against)
    log.info("%s: %s", folder.path, _describe(suite))
    for row in _measure_real(suite, settings["count"]):
        yield row, suite.numbers
    prior = build(trained["prior"], key="prior")
    noise = noise_rows(prior, settings["count"], seed=settings["seed"])
    for file, state in itertools.chain([first], checkpoints):
        generator = runtime.place(load_generator(trained, state, prior, weights=settings["weights"], file=file))
        labels = suite.labels(settings["count"]) if generator.num_classes else None
        batches = generate(
            generator,
            noise,
            labels,
            batch_size=settings["batch_size"],
            process_group=runtime.process_group,
            autocast=runtime.autocast,
        )
        samples = suite.samples(batches, labels)
        if not runtime.process_group.is_main_process:
            continue
        about = {name: settings[name] for name in ("weights", "seed")} | {"samples": len(samples), "by": "evaluate"}
        about |= {"checkpoint": file.name, "images": state["images"], "seconds": state["seconds"]}
        row = _row(f"{folder.path.name} {file.stem}", suite(samples), suite) | about
        yield row, suite.numbers
        folder.append_evaluation(row)
        _write_to_tensorboard(folder, row)
        if "memorisation" in suite.metrics:
            _write_nearest_images(folder.samples / f"neighbours-{file.stem}.png", samples, suite)


def _check_classes(folder: RunFolder, state: Mapping[str, Any], dataset: Dataset) -> None:
    """Raises UserError unless the labels of `dataset` mean what they meant when the run was trained."""
    before, now = folder.class_names(), list(dataset.class_names)
    if (before and before != now) or state["num_classes"] != dataset.num_classes:
        numbered = (now, dataset.num_classes), (before, state["num_classes"])
        said = [", ".join(map(printable, names)) or f"{count} without names" for names, count in numbered]
        raise UserError(
            f"the data has the classes {said[0]}, and had {said[1]} when this run was trained; data=… names another "
            "place where they lie"
        )


def _discriminator(folder: RunFolder, *, trust: list[str]) -> type[Discriminator] | None:
    """Returns the class of the run's discriminator, None where it may not be imported; no number needs it."""
    known = dict(nodes(folder.read_config()))
    node = known.get("network.discriminator")
    if node is None or not is_trusted(node, trust):
        return None
    return resolve(node["_target_"], key="network.discriminator")  # type: ignore[no-any-return]


def _row(of: str, values: Mapping[str, float], suite: MetricSuite) -> Row:
    """Returns a row of the table: of what it is, its numbers, and how they were obtained."""
    row: Row = {"of": of, "values": values, **suite.protocol()}
    classes = {match[1]: value for name, value in values.items() if (match := re.search(r"_class_(\d+)$", name))}
    if classes:
        worst = int(max(classes, key=lambda label: classes[label]))
        row["worst_class"] = (
            printable(suite.dataset.class_names[worst]) if suite.dataset.class_names else f"class {worst}"
        )
    return row


def _suite(
    settings: Mapping[str, Any],
    dataset: Dataset,
    runtime: Runtime,
    *,
    features: Mapping[str, Any] | None,
    labelled: bool,
    discriminator: type[Discriminator] | None = None,
) -> MetricSuite:
    """Builds the metrics that apply. features: the extractor's node where the user chose none."""
    names = settings["metric"].keys() - {"features"}
    suite = build_suite(
        {"features": features or _AUTO_FEATURES, **settings["metric"]},
        dataset,
        labelled=labelled,
        device=runtime.device,
        cache=cache_folder(settings["cache"], key="cache"),
        reference=settings["reference"],
        reference_count=settings["reference_count"] or len(dataset),
        discriminator=discriminator,
    )
    if suite is None:
        raise UserError(
            f"metric=[{','.join(names)}]: none of them is defined for this data and these features; fid, kid and "
            "precision_recall are for any images, inception_score needs metric/features=classifier or inception"
        )
    if settings["chosen"] and names - suite.metrics.keys():
        missing = ", ".join(sorted(names - suite.metrics.keys()))
        log.warning("left out, since not defined for this data and these features: %s", missing)
    return suite


def _measure_real(suite: MetricSuite, count: int) -> Iterator[Row]:
    """Yields the numbers of at most `count` real samples of the other part, which no generator can hope to beat."""
    other: Literal["train", "holdout"] = "holdout" if suite.split == "train" else "train"
    samples = reference_samples(suite.dataset, other, count, like=suite.real)
    if len(samples) < 2:
        return
    values: dict[str, float] = {}
    for name in progress(suite.metrics, title="metrics of real samples", total=len(suite.metrics)):
        if name != "memorisation":  # real samples are not copies
            values |= suite.measure(name, samples)
    yield _row(f"{len(samples):,} real, {other}", values, suite) | {"samples": "real"}


def _checkpoints(folder: RunFolder, which: str | int) -> Iterator[tuple[Path, dict[str, Any]]]:
    checkpoints = Checkpoints(folder.checkpoints)
    if which != "all":
        yield checkpoints.pick(which)
        return
    files = checkpoints.files()
    if not files:
        raise UserError(f"checkpoint=all: none in {checkpoints.folder}")
    for file in files:
        try:
            yield file, read(file)
        except InvalidTensorFile as error:
            log.warning("%s is skipped: %s", file, error)


def _measure_folders(settings: Mapping[str, Any], runtime: Runtime) -> Iterator[tuple[Row, dict[str, Number]]]:
    """Measures one folder of images against another; no run is needed."""
    if len(settings["folders"]) != 2:
        raise UserError(f"folders={settings['folders']}: two of them, [generated,real]")
    generated, real = (
        ImagesToMeasure(path=path, resolution=settings["resolution"], cache=settings["cache"], key="folders")
        for path in settings["folders"]
    )
    for name, folder, images in zip(("generated", "real"), settings["folders"], (generated, real), strict=True):
        if len(images) < 2:
            raise UserError(f"folders={folder}: {len(images)} {name} image is too few to measure")
    if generated.shape != real.shape:
        sizes = " and ".join(f"{height}x{width}" for _, height, width in (generated.shape, real.shape))
        raise UserError(f"folders={settings['folders']}: images of {sizes} pixels; give resolution=, one size for both")
    if settings["reference"] != "train":
        raise UserError(f"reference={settings['reference']}: folders have no such part; leave it out")
    suite = _suite(settings, real, runtime, features=None, labelled=False)
    log.info("%s", _describe(suite))
    samples = Samples(generated.reference("train", settings["count"] or len(generated))[0], features=suite.features)
    log.info("%s of %s generated images (%s)", f"{len(samples):,}", f"{len(generated):,}", samples.hash)
    about = {"samples": len(samples), "samples_hash": samples.hash, "by": "evaluate", "folders": settings["folders"]}
    row = _row(str(settings["folders"][0]), suite(samples), suite) | about | provenance()
    yield row, suite.numbers
    if settings["out"] is not None:
        atomic_write(expand(settings["out"], key="out"), (json.dumps(row, indent=2) + "\n").encode())


def _describe(suite: MetricSuite) -> str:
    """Returns what samples are compared with, and in which features."""
    features, text = suite.features, ""
    if features is not None:
        accuracy = "" if features.accuracy is None else f", accuracy {100 * features.accuracy:.2f} %"
        text = f"; features {features.name} ({features.hash}{accuracy}), resize {suite.resize}"
    return f"against {len(suite.real):,} real samples ({suite.split}, {suite.real.hash}){text}"


def _write_nearest_images(file: Path, samples: Samples, suite: MetricSuite) -> None:
    images, headings = nearest_images(samples, suite.real, suite.dataset)
    file.parent.mkdir(exist_ok=True)
    image_grids.write_png(file, image_grids.table(images, headings=headings))
    log.info("%d samples, drawn at random, beside their nearest images: %s", len(images), file)


def _write_to_tensorboard(folder: RunFolder, row: Row) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path), filename_suffix=".evaluate") as writer:
        for name, value in row["values"].items():
            writer.add_scalar(f"metric/{name}", value, row["images"])
