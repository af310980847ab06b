"""A generator as files that other tools read: safetensors, ONNX, a graph of `torch.export`, and a model card.

None of them needs pickle. See `inference.loading` for the layout.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from gancli import __version__
from gancli.errors import UserError
from gancli.inference.loading import EXPORT_FORMAT, Loaded
from gancli.networks.base import Generator
from gancli.reporting.streams import without_messages

log = logging.getLogger(__name__)
OPSET = 18
TOLERANCE = 1e-4  # between what torch and a graph compute
_BATCH, _CHECKED_BATCH = 4, 3  # rows that a graph is traced with, and that it is checked with
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raises UserError where gancli[export] is not installed."""
    for name in _NEEDED:
        try:
            __import__(name)
        except ImportError:
            raise UserError(
                f"formats: onnx needs {name}; run: pip install 'gancli[export]', or leave onnx out of formats"
            ) from None


def config_json(loaded: Loaded) -> str:
    """Returns config.json: all that is needed to build the generator, and what its inputs and outputs are."""
    generator, shape = loaded.generator, list(loaded.generator.image_shape)
    about = {
        "format": EXPORT_FORMAT,
        "library_name": "gancli",
        "gancli_version": __version__,
        "image_shape": shape,
        "value_range": [-1, 1] if len(shape) == 3 else None,
        "latent_dim": generator.latent_dim,
        "num_classes": generator.num_classes,
        "class_names": loaded.class_names,
        "images": loaded.images,
        "weights": loaded.weights,
        "prior": loaded.settings["prior"],
        "generator": loaded.settings["network"]["generator"],
    }
    return json.dumps(about, indent=2) + "\n"


def safetensors_bytes(generator: Generator, *, about: Mapping[str, str]) -> bytes:
    """Returns the state dict as a safetensors file. about: texts in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    return bytes(save(tensors, metadata={"format": "pt", **about}))


class _Positional(nn.Module):
    """The generator as (z, labels) -> samples, or (z) -> samples without classes; images are clamped to [-1, 1]."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.is_image = len(generator.image_shape) == 3

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        samples: Tensor = self.generator(z, labels).float()
        return samples.clamp(-1, 1) if self.is_image else samples


def inputs(generator: Generator, count: int, *, noise: Tensor | None = None) -> tuple[Tensor, ...]:
    """Returns noise (count, latent_dim), and labels (count,) if there are classes."""
    z = torch.randn(count, generator.latent_dim, generator=torch.Generator().manual_seed(0)) if noise is None else noise
    classes = generator.num_classes
    return (z, torch.arange(count) % classes) if classes else (z,)


def exported_program(generator: Generator) -> torch.export.ExportedProgram:
    """Returns the graph of (z, labels) -> samples for any batch size. Raises UserError where it cannot be traced."""
    module = _Positional(generator).eval()
    given = inputs(generator, _BATCH)
    batch = torch.export.Dim("batch", min=1)
    names = ("z", "labels")[: len(given)]
    try:
        with torch.no_grad(), _quiet():
            graph = torch.export.export(module, given, dynamic_shapes={name: {0: batch} for name in names})
    except Exception as error:  # torch raises all sorts for what it cannot trace
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"formats: this generator cannot be traced by torch.export: {reason}") from error
    for node in graph.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine
    _require_same(generator, graph.module(), "torch.export")
    return graph


def graph_bytes(graph: torch.export.ExportedProgram) -> bytes:
    """Returns the file of `torch.export.save`, without the example inputs, which it would pickle."""
    graph._example_inputs = None
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(graph, buffer)
    pickled = [name for name in zipfile.ZipFile(buffer).namelist() if _is_pickle(zipfile.ZipFile(buffer), name)]
    if pickled:
        raise UserError(f"formats: this version of torch ({torch.__version__}) pickles {pickled[0]}; leave graph out")
    return buffer.getvalue()


def _is_pickle(archive: zipfile.ZipFile, name: str) -> bool:
    with archive.open(name) as file:
        start = file.read(4)
    return name.endswith(".pkl") or (start[:2] in (b"PK", b"\x80\x02") and not name.endswith((".json", ".txt")))


def onnx_bytes(generator: Generator, graph: torch.export.ExportedProgram) -> bytes:
    """Returns the ONNX file, checked in onnxruntime against torch to TOLERANCE. Raises UserError.

    Its inputs are z, float32 (batch, latent_dim), and labels, int64 (batch,), if there are classes; its output is
    samples, float32 (batch, *image_shape).
    """
    require_onnx()
    import onnxruntime

    given = inputs(generator, _BATCH)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            given,
            dynamo=True,
            opset_version=OPSET,
            input_names=["z", "labels"][: len(given)],
            output_names=["samples"],
            verbose=False,
        )
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> Tensor:
        feed = {each.name: tensor.numpy() for each, tensor in zip(session.get_inputs(), tensors, strict=True)}
        return torch.from_numpy(np.asarray(session.run(None, feed)[0]))

    _require_same(generator, run, "onnxruntime")
    return bytes(content)


def _require_same(generator: Generator, other: Callable[..., Tensor], name: str) -> None:
    for count in (1, _CHECKED_BATCH):
        given = inputs(generator, count)
        with torch.no_grad():
            difference = float((_Positional(generator).eval()(*given) - other(*given)).abs().max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"formats: {name} differs from torch by {difference:.2g} in a sample; leave that format out"
            )
    log.info("%s computes the same as torch, to %.1g", name, difference)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the exporters print and log of their own progress."""
    with without_messages("torch.onnx", "torch.export", "onnxscript", "onnx_ir"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def card(
    loaded: Loaded,
    *,
    title: str,
    facts: Mapping[str, str],
    evaluations: Sequence[Mapping[str, Any]],
    settings: str,
    files: Sequence[str],
) -> str:
    """Returns README.md, the model card, with the metadata that the Hub reads at its top.

    facts: of the training. evaluations: rows of evaluations.jsonl. settings: of the run, as YAML. files: in the folder.
    """
    generator = loaded.generator
    is_image = len(generator.image_shape) == 3
    what = "images" if is_image else "points"
    tags = ["gan", "gancli", *(["unconditional-image-generation"] if is_image and not generator.num_classes else [])]
    head = ["---", "library_name: gancli", "tags:", *(f"- {tag}" for tag in tags)]
    head += ["pipeline_tag: unconditional-image-generation", "---"] if len(tags) > 2 else ["---"]
    shape = " x ".join(map(str, generator.image_shape))
    lines = [*head, "", f"# {title}", ""]
    lines += [f"A generator of {what} of shape {shape}, trained as a GAN by gancli {__version__}.", ""]
    if is_image and "samples.png" in files:
        lines += ["![Samples](samples.png)", ""]
    lines += ["| fact | value |", "| --- | --- |", *(f"| {key} | {_cell(value)} |" for key, value in facts.items()), ""]
    lines += ["## Use", "", "```python", "import gancli", "", 'generator = gancli.load("this-folder")']
    labels = ", labels=0" if generator.num_classes else ""
    lines += [f"images = generator.sample(16, seed=0{labels})  # {_returned(generator)}", "```", ""]
    lines += _without_gancli(generator, files)
    lines += ["## Quality", ""]
    lines += _quality(evaluations) or ["Not measured.", ""]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0))
    return "\n".join([*lines, "## Settings", "", f"{fence}yaml", settings.rstrip(), fence, ""])


def _returned(generator: Generator) -> str:
    if len(generator.image_shape) == 1:
        return f"float32 (16, {generator.image_shape[0]})"
    channels, height, width = generator.image_shape
    return f"uint8 (16, {height}, {width}, {channels})"


def _without_gancli(generator: Generator, files: Sequence[str]) -> list[str]:
    given = "z, labels" if generator.num_classes else "z"
    lines = [
        "## Without gancli",
        "",
        f"`z` is float32 (batch, {generator.latent_dim}), drawn from the prior in config.json; "
        + (f"`labels` is int64 (batch,), from 0 to {generator.num_classes - 1}; " if generator.num_classes else "")
        + f"samples are float32 (batch, {', '.join(map(str, generator.image_shape))})"
        + (", images in [-1, 1]." if len(generator.image_shape) == 3 else "."),
        "",
    ]
    if "model.onnx" in files:
        feed = '{"z": z, "labels": labels}' if generator.num_classes else '{"z": z}'
        lines += ["```python", "import onnxruntime", ""]
        lines += ['session = onnxruntime.InferenceSession("model.onnx")', f"(samples,) = session.run(None, {feed})"]
        lines += ["```", ""]
    if "model.pt2" in files:
        lines += [
            "```python",
            "import torch",
            "",
            f'samples = torch.export.load("model.pt2").module()({given})',
            "```",
            "",
        ]
    return lines if len(lines) > 4 else []


def _quality(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a table of the last evaluation and its protocol."""
    if not evaluations:
        return []
    last = evaluations[-1]
    numbers = {name: value for name, value in last["values"].items() if isinstance(value, (int, float))}
    lines = ["| metric | value |", "| --- | --- |", *(f"| {name} | {value:.4g} |" for name, value in numbers.items())]
    protocol = {key: value for key, value in last.items() if key not in ("values", "of") and value is not None}
    shown = ", ".join(f"{key} {_cell(value)}" for key, value in protocol.items() if not isinstance(value, (dict, list)))
    return [*lines, "", f"Protocol: {shown}.", ""]


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
