"""From a run folder or an exported folder to a generator. Both may come from elsewhere: loading runs no code of theirs.

An exported folder has the layout of a model of the Hugging Face Hub:

config.json          the shape of samples and noise, classes, and the settings of generator and prior
model.safetensors    the generator's weights
README.md            the model card
model.onnx           the generator as an ONNX graph, (z, labels) -> samples
model.pt2            the generator as a graph for `torch.export.load`
samples.png          what it generates
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from gancli import __version__, config
from gancli.build import build
from gancli.errors import UserError
from gancli.files import tensor_files
from gancli.files.json_files import read_json
from gancli.networks.base import Generator
from gancli.networks.memory_limit import MemoryChecked
from gancli.priors import Prior
from gancli.training.checkpoint import Checkpoints
from gancli.training.run_folder import RunFolder, require_trusted

EXPORT_FORMAT = 1
CONFIG, WEIGHTS, CARD, ONNX, GRAPH, PICTURE = FILES = (
    *("config.json", "model.safetensors", "README.md"),
    *("model.onnx", "model.pt2", "samples.png"),
)
PARTS = ("prior", "network.generator")  # the settings that a generator is built from
_OUTLINE = {
    "format": int,
    "image_shape": list[int],
    "latent_dim": int,
    "num_classes": int,
    "class_names": list[str],
    "images": int,
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A generator on the CPU, the prior of its noise, and what is known of them.

    settings: of both, as in config.yaml. class_names: in the order of the labels; empty where classes have numbers
    only. file: that the weights come from. images: seen in training. weights: averaged ones (ema), or those in training
    (raw).
    """

    generator: Generator
    prior: Prior
    settings: Mapping[str, Any]
    class_names: list[str]
    file: Path
    images: int
    weights: str


def load(
    path: Path,
    *,
    checkpoint: str | int = "last",
    weights: Literal["ema", "raw"] = "ema",
    trust: list[str] | None = None,
) -> Loaded:
    """Loads the generator of a run folder, or of an exported folder, which holds one checkpoint alone.

    checkpoint: last, best, or a number of images. trust: packages whose classes the folder may name. Raises UserError.
    """
    trust = trust or []
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights}: one of ema, raw")
    if is_export(path):
        found = _load_export(path, trust=trust)
        if checkpoint != "last" or weights not in ("ema", found.weights):
            raise UserError(f"{path}: is an export, of one checkpoint's weights; leave checkpoint and weights out")
        return found
    folder = RunFolder(path)
    trained = folder.settings(trust=trust, parts=PARTS)
    file, state = Checkpoints(folder.checkpoints).pick(checkpoint)
    prior = build(trained["prior"], key="prior")
    return Loaded(
        generator=load_generator(trained, state, prior, weights=weights, file=file),
        prior=prior,
        settings=trained,
        class_names=list(folder.class_names()) if state["num_classes"] else [],
        file=file,
        images=state["images"],
        weights=weights,
    )


def is_export(path: Path) -> bool:
    """Whether a folder is one that `gancli export` wrote, or means to be."""
    if (path / "config.yaml").is_file() or not (path / CONFIG).is_file():
        return False
    return bool(read_json(path / CONFIG).get("library_name") == "gancli")


def load_generator(
    trained: Mapping[str, Any], state: Mapping[str, Any], prior: Prior, *, weights: str, file: Path
) -> Generator:
    """Returns the generator of the checkpoint `file`, whose content is `state`.

    trained: the run's settings. weights: ema or raw. Raises UserError where they do not fit the checkpoint.
    """
    known = {"latent_dim": prior.dim, "image_shape": tuple(state["shape"]), "num_classes": state["num_classes"]}
    return _build(trained, state["ema" if weights == "ema" else "generator"], file=file, **known)


def _load_export(path: Path, *, trust: list[str]) -> Loaded:
    about = read_json(path / CONFIG)
    problem = tensor_files.misfit(about, _OUTLINE)
    if problem is not None:
        raise UserError(f"{path / CONFIG}: not the description of a generator that gancli exported: {problem}")
    if about["format"] != EXPORT_FORMAT:
        raise UserError(
            f"{path / CONFIG}: export format {about['format']}; gancli {__version__} reads format {EXPORT_FORMAT}"
        )
    shape, classes, names = about["image_shape"], about["num_classes"], about["class_names"]
    if len(shape) not in (1, 3) or not all(1 <= side <= 2**16 for side in shape) or not 0 <= classes <= 2**20:
        raise UserError(f"{path / CONFIG}: image_shape={shape}, num_classes={classes}: of no generator")
    if names and len(names) != classes:
        raise UserError(f"{path / CONFIG}: {len(names)} class_names for num_classes={classes}")
    settings: dict[str, Any] = {"prior": about.get("prior"), "network": {"generator": about.get("generator")}}
    if not all(isinstance(node, dict) and "_target_" in node for node in (about.get("prior"), about.get("generator"))):
        raise UserError(f"{path / CONFIG}: names no class for prior and generator")
    require_trusted(settings, file=path / CONFIG, trust=trust)
    config.check(settings, {})
    prior = build(settings["prior"], key="prior")
    if prior.dim != about["latent_dim"]:
        raise UserError(f"{path / CONFIG}: latent_dim={about['latent_dim']}, but the prior has {prior.dim} dimensions")
    file = path / WEIGHTS
    known = {"latent_dim": prior.dim, "image_shape": tuple(shape), "num_classes": classes}
    generator = _build(settings, _read_safetensors(file), file=file, **known)
    return Loaded(
        generator=generator,
        prior=prior,
        settings=settings,
        class_names=names,
        file=file,
        images=about["images"],
        weights=str(about.get("weights", "ema")),
    )


def _build(trained: Mapping[str, Any], weights: Mapping[str, Any], *, file: Path, **known: Any) -> Generator:
    given = trained["network"]["generator"].items()
    sizes = {f"network.generator.{name}": value for name, value in given if isinstance(value, int)}
    with MemoryChecked({"prior.dim": known["latent_dim"], **sizes}):
        generator: Generator = build(trained["network"]["generator"], key="network.generator", **known)
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{file} holds another network than the settings beside it describe: {reason}") from None
    return generator.eval()


def _read_safetensors(file: Path) -> dict[str, Any]:
    if not file.is_file():  # the Hub's cache has links
        raise UserError(f"{file}: no such file")
    try:
        weights = load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file}: not readable as safetensors: {error}") from None
    broken = tensor_files.non_finite(weights)
    if broken is not None:
        raise UserError(f"{file}: {broken} is not finite")
    return dict(weights)
