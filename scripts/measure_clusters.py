#!/usr/bin/env python3
"""Measures runs on clusters of images by the labels that the images have after all, which the runs have not seen.

    scripts/cluster_images.py clusters --count 50 -- dataset=mnist
    gancli train experiment=mnist dataset=folder dataset.path=clusters … hydra.run.dir=outputs/clusters-0
    scripts/measure_clusters.py outputs/clusters-0 outputs/clusters-1 -- dataset=mnist

What follows `--` chooses the data set that was sorted. Samples, in clusters as frequent as in the training data, are
compared with its held-out images in the features of a classifier of its labels. Prints one line for each run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import gancli
from gancli.build import build
from gancli.config import compose
from gancli.files.user_paths import cache_folder
from gancli.metrics.suite import build_suite
from gancli.training.run_folder import RunFolder

COUNT = 10_000
BATCH = 500
METRICS = ["metric=[fid,precision_recall]", "metric/features=classifier"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:end])
    sorted_ = build(compose("train", sys.argv[end + 1 :])["dataset"], key="dataset")
    metric = compose("evaluate", ["run=none", *METRICS])["metric"]
    options = {"cache": cache_folder(None, key="cache"), "reference": "holdout"}
    suite = build_suite(metric, sorted_, labelled=False, device=torch.device("cpu"), **options)
    assert suite is not None
    for run in arguments.runs:
        generator = gancli.load(run)
        clusters = build(RunFolder(Path(run)).settings(trust=[])["dataset"], key="dataset")
        labels = clusters.reference("train", COUNT)[1]
        batches = zip(generator.noise(COUNT).split(BATCH), labels.split(BATCH), strict=True)
        with torch.no_grad():
            samples = suite.samples([generator(*batch) for batch in batches], None)
        values = ", ".join(f"{name} {value:.4g}" for name, value in suite(samples).items())
        print(f"{run}, {generator.images:,} images: {values}", flush=True)


if __name__ == "__main__":
    main()
