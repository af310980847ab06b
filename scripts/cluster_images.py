#!/usr/bin/env python3
"""Sorts images without labels into folders of similar ones, which then serve as classes.

    scripts/cluster_images.py clusters --count 100 -- dataset=mnist
    scripts/cluster_images.py clusters --count 20 -- dataset=folder dataset.path=photos dataset.resolution=64
    gancli train dataset=folder dataset.path=clusters dataset.labels=true conditional=true

The clusters are spectral (Ng, Jordan & Weiss, NeurIPS 2001), of the graph of nearest neighbours: unlike those of
k-means, they follow the shapes in which images of a kind lie. Images are near by the orientations of their gradients
(Dalal & Triggs, CVPR 2005), in which a line that moves a little stays what it is, unlike in pixels. A
generator that knows the cluster has less to tell apart, so that fewer samples lie between kinds (Sage et al., "Logo
Synthesis and Manipulation with Clustered Generative Adversarial Networks", CVPR 2018). What follows `--` chooses the
data set as for `gancli train`; its training part becomes the folder's train, each cluster a folder there, and its
held-out part the folder's test.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

ORIENTATIONS = 8  # of gradients
CELLS = 9  # along each side, for each of which there is a histogram of orientations
COMPONENTS = 50  # of the histograms
NEIGHBOURS = 15  # that an image is joined to
NEAR = 7  # the neighbour whose distance is the scale around an image (Zelnik-Manor & Perona, NeurIPS 2004)
DIMENSIONS = 15  # of the spectral embedding


def clusters_of(train: Tensor, held_out: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clusters of images, uint8 (N, C, H, W), found among `train`, of both parts: (N,) each.

    An image of `held_out` belongs to the cluster of most of its neighbours in `train`.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    rows, others = (np.concatenate([histograms(part) for part in images.split(1_000)]) for images in (train, held_out))
    components = PCA(min(COMPONENTS, *rows.shape), random_state=0).fit(rows)
    rows, others = components.transform(rows), components.transform(others)
    embedding = spectral_embedding(rows, min(DIMENSIONS, count))
    clusters = KMeans(count, random_state=0, n_init=3).fit_predict(embedding)
    return clusters, KNeighborsClassifier(min(NEAR, len(rows))).fit(rows, clusters).predict(others)


def histograms(images: Tensor) -> np.ndarray:
    """Returns the histograms of orientations of images (N, C, H, W), (N, ORIENTATIONS * CELLS**2), as square roots.

    Cells overlap, so that nothing changes abruptly where a line moves from one into the next.
    """
    rows, columns = torch.gradient(images.float().mean(1) / 255, dim=(1, 2))
    angle, length = torch.atan2(rows, columns)[:, None], torch.hypot(rows, columns)[:, None]
    directions = torch.arange(ORIENTATIONS).view(-1, 1, 1) * (2 * torch.pi / ORIENTATIONS)
    maps = length * torch.cos(angle - directions).clamp_min(0) ** 3
    overlap = min(images.shape[2:]) // 12
    maps = avg_pool2d(maps, 2 * overlap + 1, stride=1, padding=overlap)
    return adaptive_avg_pool2d(maps, CELLS).flatten(1).sqrt().numpy()


def spectral_embedding(rows: np.ndarray, dimensions: int) -> np.ndarray:
    """Returns (N, dimensions): the leading eigenvectors of the normalised graph of neighbours, each row of length 1."""
    from scipy.sparse import csr_array, diags_array
    from scipy.sparse.linalg import eigsh
    from sklearn.neighbors import NearestNeighbors

    neighbours = min(NEIGHBOURS, len(rows) - 1)
    distances, indices = NearestNeighbors(n_neighbors=neighbours).fit(rows).kneighbors()
    scale = np.maximum(distances[:, min(NEAR, neighbours) - 1], 1e-9)
    weights = np.exp(-(distances**2) / (scale[:, None] * scale[indices]))
    starts = np.arange(0, weights.size + 1, neighbours)
    graph = csr_array((weights.ravel(), indices.ravel(), starts), shape=(len(rows), len(rows)))
    graph = graph.maximum(graph.T)
    degrees = diags_array(np.maximum(graph.sum(axis=1), 1e-9) ** -0.5)
    first = np.random.default_rng(0).standard_normal(len(rows))  # eigsh would draw one
    vectors = eigsh(degrees @ graph @ degrees, k=dimensions, which="LA", tol=1e-3, v0=first)[1]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


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
    if len(dataset.shape) != 3 or not 2 <= arguments.count < len(dataset):
        sys.exit(f"--count {arguments.count}: from 2 to {len(dataset) - 1:,}, and of images, not of points")
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
