"""Samples as files: arrays, a folder of PNGs, shards of a tar, a GIF or MP4. All are written whole or not at all."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gancli.distributed.process_group import ProcessGroup
from gancli.errors import UserError
from gancli.files.atomic import atomic_folder, atomic_write
from gancli.files.json_files import read_json
from gancli.reporting import image_grids
from gancli.reporting.image_grids import Array

GIF_MILLISECONDS = 60  # of a frame
MP4_RATE = 24  # frames per second
SHARD = "samples-{:05d}.tar"
MANIFEST = "manifest.json"


def write_arrays(out: Path, batches: Iterable[Tensor], noise: Tensor, labels: Tensor | None) -> None:
    """Writes an npz of images, uint8 (N, H, W, C), or points, float32 (N, dims), with z (N, dim) and labels (N,).

    Labels are -1 where there are none.
    """
    # Images become bytes batch by batch, since those of all batches may not fit in memory as floats.
    parts = [batch.numpy() if batch.ndim == 2 else image_grids.to_uint8(batch) for batch in batches]
    arrays = {"points" if parts[0].ndim == 2 else "images": np.concatenate(parts), "z": noise.numpy()}
    arrays["labels"] = np.full(len(noise), -1) if labels is None else labels.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(out, buffer.getbuffer())


def png_name(number: int, count: int) -> str:
    """Returns the name of the file of sample `number` of `count`."""
    return f"{number:0{max(5, len(str(count - 1)))}d}.png"


def write_pngs(out: Path, batches: Iterable[Tensor], count: int) -> None:
    """Writes a folder with one PNG for each of the images (B, C, H, W) in `batches`."""
    with atomic_folder(out.resolve()) as folder:
        for number, image in enumerate(_images(batches)):
            (folder / png_name(number, count)).write_bytes(image_grids.encode_png(image))


def write_shards(
    out: Path,
    generate: Callable[[slice], Iterator[Tensor]],
    labels: Tensor | None,
    *,
    count: int,
    per_shard: int,
    about: Mapping[str, Any],
    process_group: ProcessGroup,
) -> None:
    """Writes a folder of tar files with `per_shard` images each, of which every process writes its part.

    In a tar, image 00012.png is followed by its label, 00012.cls, where it has one. manifest.json has `about`, and the
    range of images in each tar. generate: yields the images of a range of samples, made by this process alone.
    """
    shards = [range(first, min(first + per_shard, count)) for first in range(0, count, per_shard)]

    def write(folder: Path) -> None:
        mine = list(enumerate(shards))[process_group.rank :: process_group.world_size]
        for number, rows in mine:
            with tarfile.open(folder / SHARD.format(number), "w") as tar:
                for row, image in zip(rows, _images(generate(slice(rows.start, rows.stop))), strict=True):
                    name = png_name(row, count)
                    _add(tar, name, image_grids.encode_png(image))
                    if labels is not None:
                        _add(tar, name.replace(".png", ".cls"), str(int(labels[row])).encode())

    if not process_group.is_main_process:
        write(Path(process_group.broadcast_from_main(lambda: "")))
        process_group.barrier()
        return
    with atomic_folder(out.resolve()) as folder:
        write(Path(process_group.broadcast_from_main(lambda: str(folder))))
        files = [
            {"file": SHARD.format(number), "first": rows.start, "count": len(rows)}
            for number, rows in enumerate(shards)
        ]
        (folder / MANIFEST).write_text(json.dumps({**about, "count": count, "shards": files}, indent=1) + "\n")
        process_group.barrier()


def written_shards(folder: Path) -> set[str]:
    """Returns the names of the files in a folder that `write_shards` wrote, as its manifest tells; none without one."""
    shards = read_json(folder / MANIFEST).get("shards")
    if not isinstance(shards, list):
        return set()
    names = [shard.get("file") for shard in shards if isinstance(shard, dict)]
    return {MANIFEST, *(name for name in names if isinstance(name, str))}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # without a time or an owner, so that the same samples are the same bytes
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _images(batches: Iterable[Tensor]) -> Iterator[Array]:
    for batch in batches:
        yield from image_grids.to_uint8(batch)


def write_mp4(out: Path, frames: Sequence[Array]) -> None:
    """Writes frames (H, W, 1 or 3) as H.264, at MP4_RATE frames per second. Raises UserError without gancli[video].

    Sides are padded with white to even numbers of pixels, as the format needs.
    """
    require_video()
    import av

    height, width = (-(-side // 2) * 2 for side in frames[0].shape[:2])
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4") as video:
            stream = video.add_stream("libx264", rate=Fraction(MP4_RATE), options={"crf": "14"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                canvas = np.full((height, width, 3), 255, np.uint8)
                canvas[: frame.shape[0], : frame.shape[1]] = frame  # grey is the same in all three
                video.mux(stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))
            video.mux(stream.encode())
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise UserError(
            f"format=mp4: a film of {width}x{height} pixels cannot be encoded ({error}); take a smaller scale or count"
        ) from None
    atomic_write(out, buffer.getbuffer())


def require_video() -> None:
    """Raises UserError where gancli[video] is not installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError("format=mp4: needs PyAV; run: pip install 'gancli[video]', or take format=gif") from None
