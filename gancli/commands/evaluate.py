"""`gancli evaluate`: what the samples of runs are worth, as a table, as JSON and in TensorBoard."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gancli import config
from gancli.atomic_files import atomic_write
from gancli.build import build
from gancli.commands.sample import generated, generator_of, noise_rows
from gancli.datasets.base import Dataset
from gancli.datasets.folder import Pictures
from gancli.device import Runtime
from gancli.distributed.process_group import join_process_group
from gancli.errors import InvalidCheckpoint, UserError, require_at_least
from gancli.metrics.base import Samples
from gancli.metrics.memorisation import neighbours
from gancli.metrics.suite import MetricSuite, build_suite
from gancli.reporting import image_grids
from gancli.reporting.html import Table
from gancli.training.checkpoint import Checkpoints, read
from gancli.training.run_folder import Row, RunFolder, provenance

log = logging.getLogger(__name__)
SCHEMA = {
    "run": str | int | list[str] | None,
    "folders": list[str] | None,
    "resolution": int | list[int] | None,
    "checkpoint": str | int,
    "weights": Literal["ema", "raw"],
    "out": str | None,
    "count": int | None,
    "seed": int,
    "reference": Literal["train", "holdout"],
    "reference_count": int | None,
    "data": str | None,
    "cache": str,
    "batch_size": int,
    "trust": list[str],
}


def run(settings: dict[str, Any]) -> list[Row]:
    """Evaluates what `settings` ask for, prints a table, and returns its rows. Raises UserError, OSError."""
    config.check(settings, SCHEMA)
    require_at_least(2, count=settings["count"], reference_count=settings["reference_count"])
    require_at_least(1, batch_size=settings["batch_size"])
    asked = settings["run"] if isinstance(settings["run"], list) else [settings["run"]]
    if (asked in ([], [None])) == (settings["folders"] is None):
        raise UserError("run=…: name one or more run folders, or instead folders=[generated,real]")
    if not settings["metric"].keys() - {"features"}:
        raise UserError("metric=[]: name at least one, such as metric=[fid]")
    runtime = build(settings["device"], key="device", process_group=join_process_group())
    if settings["folders"] is not None:
        rows = [_folders(settings, runtime)]
    else:
        settings = {**settings, "count": settings["count"] or 10_000}
        settings["reference_count"] = settings["reference_count"] or 60_000
        parts = ("prior", "network.generator", "dataset")
        folders = [RunFolder(Path(str(one)).expanduser()) for one in asked]
        trained = [folder.settings(trust=settings["trust"], parts=parts) for folder in folders]
        rows = [row for pair in zip(folders, trained, strict=True) for row in _run(*pair, settings, runtime)]
    for line in table(_once(rows)):
        log.info("%s", line)
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of text: a row for each of `rows`, a column for each of their numbers."""
    names = list(dict.fromkeys(name for row in rows for name in row["values"] if not name.startswith("fid_class_")))
    lines = [[row["of"], *(_short(row["values"].get(name)) for name in names)] for row in rows]
    return Table(["", *names], lines).lines()


def _once(rows: Sequence[Row]) -> list[Row]:
    """What real samples score need not be said for each run."""
    kept: list[Row] = []
    for row in rows:
        if row["samples"] != "real" or row not in kept:
            kept.append(row)
    return kept


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _run(folder: RunFolder, trained: dict[str, Any], settings: Mapping[str, Any], runtime: Runtime) -> list[Row]:
    found = _checkpoints(folder, settings["checkpoint"])  # one after the other: all of them may not fit in memory
    first = next(found, None)
    if first is None:
        raise UserError(f"checkpoint={settings['checkpoint']}: none in {folder.checkpoints} can be read")
    dataset = build(config.moved(trained["dataset"], settings["data"]), key="dataset")
    suite = _suite(settings, dataset, runtime, labelled=bool(first[1]["num_classes"]))
    log.info("%s: %s", folder.path, _spoken(suite))
    rows = _real(suite, settings["count"])
    prior = build(trained["prior"], key="prior")
    noise = noise_rows(prior, settings["count"], seed=settings["seed"])
    for file, state in itertools.chain([first], found):
        generator = runtime.place(generator_of(trained, state, prior, which=settings["weights"], file=file))
        labels = suite.labels(settings["count"]) if generator.num_classes else None
        made = generated(generator, runtime, noise, labels, batch_size=settings["batch_size"])
        samples = suite.samples(made, labels)
        if not runtime.process_group.is_main_process:
            continue
        about = {name: settings[name] for name in ("weights", "seed")} | {"samples": len(samples), "by": "evaluate"}
        about |= {"checkpoint": file.name, "images": state["images"], "seconds": state["seconds"]}
        values = suite(samples)
        rows.append(row_for(f"{folder.path.name} {file.stem}", values, {**suite.protocol(), **about}))
        if "memorisation" in suite.metrics:
            _sheet(folder.samples / f"neighbours-{file.stem}.png", samples, suite)
    if runtime.process_group.is_main_process:
        for row in rows:
            if row["samples"] != "real":
                folder.append_evaluation(row)
        _show(folder, rows)
    return rows


def row_for(of: str, values: Mapping[str, float], protocol: Mapping[str, Any]) -> Row:
    """A result: numbers, whose they are, and how they were obtained."""
    return {"of": of, "values": dict(values), **protocol}


def _suite(settings: Mapping[str, Any], dataset: Dataset, runtime: Runtime, *, labelled: bool) -> MetricSuite:
    asked = settings["metric"].keys() - {"features"}
    made = build_suite(
        settings["metric"],
        dataset,
        labelled=labelled,
        device=runtime.device,
        cache=Path(settings["cache"]).expanduser(),
        reference=settings["reference"],
        reference_count=settings["reference_count"] or len(dataset),
    )
    if made is None:
        raise UserError(
            f"metric=[{','.join(asked)}]: none of them means anything for this data and these features; "
            "fid, kid and precision_recall suit any images, inception_score those with metric/features=classifier"
        )
    if asked - made.metrics.keys():
        log.info("left out, since they mean nothing here: %s", ", ".join(sorted(asked - made.metrics.keys())))
    return made


def _real(suite: MetricSuite, count: int) -> list[Row]:
    """What at most `count` real samples of the other part score: nobody should hope for more from as many."""
    other: Literal["train", "holdout"] = "holdout" if suite.split == "train" else "train"
    samples = Samples(*suite.dataset.reference(other, count), features=suite.features)
    if len(samples) < 2:
        return []
    metrics = {name: metric for name, metric in suite.metrics.items() if name != "memorisation"}
    values: dict[str, float] = {}
    for metric in metrics.values():
        values |= metric(samples, suite.real, suite.dataset)
    return [row_for(f"{len(samples):,} real, {other}", values, {**suite.protocol(), "samples": "real"})]


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
        except InvalidCheckpoint as error:
            log.warning("%s is skipped: %s", file, error)


def _folders(settings: Mapping[str, Any], runtime: Runtime) -> Row:
    """One folder of images against another, no run needed."""
    if len(settings["folders"]) != 2:
        raise UserError(f"folders={settings['folders']}: two of them, [generated,real]")
    try:
        made, real = (
            Pictures(path=path, resolution=settings["resolution"], cache=settings["cache"], key="folders")
            for path in settings["folders"]
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if len(made) < 2:
        raise UserError(f"folders={settings['folders']}: {len(made)} generated image is too few to measure")
    if made.shape != real.shape:
        raise UserError(
            f"resolution=null: images of {made.shape[1:]} and {real.shape[1:]} pixels; give one size for both"
        )
    suite = _suite(settings, real, runtime, labelled=False)
    log.info("%s", _spoken(suite))
    samples = Samples(made.reference("train", settings["count"] or len(made))[0], features=suite.features)
    log.info("%s of %s generated images (%s)", f"{len(samples):,}", f"{len(made):,}", samples.hash)
    about = {"samples": len(samples), "samples_hash": samples.hash, "by": "evaluate", "folders": settings["folders"]}
    row = row_for(str(settings["folders"][0]), suite(samples), {**suite.protocol(), **about, **provenance()})
    if settings["out"] is not None:
        atomic_write(Path(settings["out"]).expanduser(), (json.dumps(row, indent=2) + "\n").encode())
    return row


def _spoken(suite: MetricSuite) -> str:
    features = suite.features
    how = ""
    if features is not None:
        accuracy = "" if features.accuracy is None else f", {100 * features.accuracy:.2f} % right"
        how = f"; features {features.name} ({features.hash}{accuracy}), resize {suite.resize}"
    return f"against {len(suite.real):,} real samples ({suite.split}, {suite.real.hash}){how}"


def _sheet(file: Path, samples: Samples, suite: MetricSuite) -> None:
    images, columns = neighbours(samples, suite.real, suite.dataset)
    file.parent.mkdir(exist_ok=True)
    image_grids.write_png(file, image_grids.grid(images.permute(0, 2, 3, 1).numpy(), columns=columns))
    log.info("nearest training and held-out images beside samples: %s", file)


def _show(folder: RunFolder, rows: Sequence[Row]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path), filename_suffix=".evaluate") as writer:
        for row in rows:
            for name, value in row["values"].items() if "images" in row else ():
                writer.add_scalar(f"metric/{name}", value, row["images"])
