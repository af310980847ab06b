#!/usr/bin/env python3
"""Sorts images without labels into folders of similar ones, which then serve as classes.

    scripts/cluster_images.py clusters --count 100 -- dataset=mnist
    scripts/cluster_images.py clusters --count 20 -- dataset=folder dataset.path=photos dataset.resolution=64
    gancli train dataset=folder dataset.path=clusters dataset.labels=true conditional=true

The clusters are those of k-means on the first principal components of the pixels. A generator that knows the cluster
has less to tell apart, so that fewer samples lie between kinds (Sage et al., "Logo Synthesis and Manipulation with
Clustered Generative Adversarial Networks", CVPR 2018). What follows `--` chooses the data set as for `gancli train`;
its training part becomes the folder's train, each cluster a folder there, and its held-out part the folder's test.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from torch import Tensor

COMPONENTS = 50  # of the pixels


def clusters_of(train: Tensor, held_out: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clusters of images, uint8 (N, C, H, W), found among `train`, of both parts: (N,) each."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

    rows, others = (images.flatten(1).numpy() / np.float32(255) for images in (train, held_out))
    components = PCA(min(COMPONENTS, *rows.shape), random_state=0).fit(rows)
    means = MiniBatchKMeans(count, random_state=0, batch_size=4096, n_init=3).fit(components.transform(rows))
    return means.labels_, means.predict(components.transform(others))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder, new or empty")
    parser.add_argument("--count", type=int, default=50, help="clusters")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, words = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    from gancli.build import build
    from gancli.config import compose
    from gancli.datasets.base import Dataset, Split
    from gancli.errors import UserError
    from gancli.inference.sample_files import png_name
    from gancli.reporting.image_grids import encode_png

    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        sys.exit(f"{arguments.out}: is there already; name a new folder")
    try:
        dataset: Dataset = build(compose("train", words)["dataset"], key="dataset")
    except UserError as error:
        sys.exit(str(error))
    if len(dataset.shape) != 3 or not 2 <= arguments.count <= len(dataset):
        sys.exit(f"--count {arguments.count}: from 2 to the number of images, {len(dataset):,}; points have none")
    splits: dict[str, Split] = {"train": "train", "test": "holdout"}
    parts = {name: dataset.reference(split, dataset.size(split))[0] for name, split in splits.items()}
    for (name, images), clusters in zip(parts.items(), clusters_of(*parts.values(), arguments.count), strict=True):
        for number, (image, cluster) in enumerate(zip(images, clusters, strict=True)):
            folder = arguments.out / name / f"{cluster:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / png_name(number, len(images))).write_bytes(encode_png(image.permute(1, 2, 0).numpy()))
    print(f"{arguments.out}: {len(parts['train']):,} images in {arguments.count} clusters")


if __name__ == "__main__":
    main()
