#!/usr/bin/env python3
"""Trains ways to learn photographs for the same minutes, measures them, and writes the table of docs/recipes.md.

    scripts/measure_photos.py photos.zip --holdout 2000 --minutes 10
    scripts/measure_photos.py photos.zip --methods photos --seeds 0 1 2
    scripts/measure_photos.py photos.zip --images 8000 --methods photos photos_small -- dataset.limit=1000
    scripts/measure_photos.py photos.zip --methods photos dcgan -- dataset.resolution=32
    scripts/measure_photos.py cifar10 --holdout 0 --minutes 20 --methods photos cifar10 --features classifier -- LABELS
    scripts/measure_photos.py --write

where LABELS are dataset.labels=true conditional=false. The data is a folder or zip of photographs, of which the last
`--holdout` by name are held out, or with `--holdout 0` those that the data set holds out itself. Records are kept in
docs/photos.json, one per method, data, length and seed, and a picture of the first samples beside it. `--features`
are those of Fréchet distances besides that of efficientnet. `--write` only puts the table into docs/recipes.md. What
follows `--` is passed to `gancli train`, and is part of the method's name, unless it is about labels.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gancli.datasets.files import find_images
from gancli.training.run_folder import RunFolder, provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "docs" / "photos.json", ROOT / "docs" / "recipes.md"
PLAIN = ["dataset=folder", "dataset.resolution=64", "dataset.flip=true", "train.images=null"]
METHODS = {
    "dcgan": [*PLAIN, "network=dcgan"],
    "resnet": [
        *(*PLAIN, "network=resnet", "loss=hinge", "penalty=none", "train.batch_size=32"),
        *("network.generator.channels=16", "network.discriminator.channels=16"),
    ],
    "r3gan": [*PLAIN, "network=r3gan", "loss=relativistic", "penalty=[r1,r2]", "augment=ada", "train.batch_size=64"],
    "photos": ["experiment=photos"],
    "photos_dcgan": ["experiment=photos", "network/generator=dcgan", "network.generator.channels=32"],
    "photos_small": ["experiment=photos_small"],
    "cifar10": ["experiment=cifar10", "dataset=folder", "dataset.resolution=32", "train.images=null"],
}
COLUMNS = {
    "images": "images",
    "fd_efficientnet": "FD (efficientnet)",
    "kd_efficientnet": "KD (efficientnet)",
    "precision": "precision",
    "recall": "recall",
    "fd_random": "FD (random)",
    "fd_classifier": "FD (classifier)",
    "closer_than_holdout": "copies",
}
ABOUT_LABELS = {"dataset.labels=true", "conditional=false"}  # for the features of a classifier, not for the run
BEGIN, END = "<!-- photographs -->", "<!-- end of photographs -->"


def split(data: Path, holdout: int, folder: Path) -> Path:
    """Puts the images of `data` into the folders train and test, the last `holdout` by name into test."""
    files = find_images(data, key="data")
    for number, name in enumerate(files.names):
        part = folder / ("train" if number < len(files.names) - holdout else "test")
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{number:06d}{Path(name).suffix}").write_bytes(files.read(name))
    return folder


def gancli(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "gancli", *words], check=True)


def measure(
    name: str, words: list[str], *, data: Path, length: list[str], seed: int, run: Path, count: int, features: list[str]
) -> dict:
    """Trains and evaluates one run, and returns its record."""
    own = [f"dataset.path={data}", *length, "evaluation.every=null", f"seed={seed}", f"hydra.run.dir={run}"]
    gancli("train", *METHODS[name], *own, *words)
    common = [f"run={run}", f"count={count}"]
    metrics = "metric=[fid,kid,precision_recall,memorisation]"
    gancli("evaluate", *common, metrics, "metric/features=efficientnet")
    for other in features:
        gancli("evaluate", *common, "metric=[fid]", f"metric/features={other}")
    folder = RunFolder(run)
    rows = folder.read_evaluations(by="evaluate")
    values = {key: value for row in rows for key, value in row["values"].items() if key in COLUMNS}
    last = rows[-1]
    return {
        "values": {"images": last["images"], **values},
        "seconds": last["seconds"],
        "samples": count,
        "shared_pretraining": rows[0]["shared_pretraining"],
        "reference_count": rows[0]["reference_count"],
        **provenance(),
    }


def table(records: dict[str, dict]) -> str:
    """Returns a row per method, data and minutes: the mean over seeds, and the standard deviation of several."""
    rows: dict[str, list[dict]] = {}
    for key, record in records.items():
        rows.setdefault(key.rpartition(", seed ")[0], []).append(record)
    lines = [
        "| method | " + " | ".join(["seeds", *COLUMNS.values()]) + " |",
        "| " + " | ".join(["---"] * (2 + len(COLUMNS))) + " |",
    ]
    for name, group in sorted(rows.items()):
        cells = [name, str(len(group))]
        for column in COLUMNS:
            values = [record["values"][column] for record in group if column in record["values"]]
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            mean = statistics.mean(values) if values else None
            cells.append("" if mean is None else f"{mean:,.0f}" if column == "images" else f"{mean:.4g}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page() -> None:
    records = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(records)}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--holdout", type=int, default=2_000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--images", type=int, help="to train for, instead of minutes")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["dcgan", "photos"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--features", nargs="+", default=["random"])
    arguments, words = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    length, said = [f"train.minutes={arguments.minutes}"], f"{arguments.minutes:g} minutes"
    if arguments.images:
        length, said = ["train.minutes=null", f"train.images={arguments.images}"], f"{arguments.images:,} images"
    if arguments.data is not None:
        with tempfile.TemporaryDirectory() as scratch:
            data = arguments.data.absolute()
            if arguments.holdout:
                data = split(data, arguments.holdout, Path(scratch, "images"))
            for seed in arguments.seeds:
                for name in arguments.methods:
                    run = Path(scratch, f"{name}-{seed}")
                    options = {"length": length, "count": arguments.count, "features": arguments.features}
                    record = measure(name, words, data=data, seed=seed, run=run, **options)
                    title = " ".join([name, *(word for word in words if word not in ABOUT_LABELS)])
                    key = f"`{title}`, {arguments.data.stem}, {said}, seed {seed}"
                    records = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
                    RESULTS.write_text(json.dumps({**records, key: record}, indent=2, sort_keys=True) + "\n")
                    if seed == arguments.seeds[0]:
                        picture = ROOT / "docs" / f"{re.sub('[^a-z0-9]+', '-', f'{arguments.data.stem} {title}')}.png"
                        picture.unlink(missing_ok=True)
                        gancli("sample", f"run={run}", "count=16", f"out={picture}")
    write_page()


if __name__ == "__main__":
    main()
