"""Where the scalars, images and histograms of a run go besides its own files: TensorBoard, Weights & Biases, MLflow.

All of them get the same names, over the same axis, images seen.
"""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import re
import socket
import sys
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
from torch import Tensor

from gancli.config import leaves
from gancli.errors import SettingError, UserError
from gancli.reporting import image_grids
from gancli.reporting.image_grids import Array
from gancli.reporting.streams import without_messages

log = logging.getLogger(__name__)
ONLINE_SECONDS = 2.0  # to find out whether there is a network
_LAST_BIN = 5e19  # of TensorBoard's histograms, which fail where all numbers are larger
_OBJECTIVES = {"loss/discriminator": 0.0, "loss/generator": 0.0, "accuracy/holdout": 0.0}  # of TensorBoard's hparams
_LONGEST_PARAM, _PARAMS = 500, 100  # letters of a value in MLflow's older servers; values sent at once


@dataclass(kw_only=True)
class Start:
    """What a sink is opened with.

    folder: of the run. settings: the resolved configuration. images: at which the run starts, 0 for a new one. ids: by
    the name of a service, what it calls this run; a service that makes a new one adds it.
    """

    folder: Path
    settings: Mapping[str, Any]
    images: int
    ids: dict[str, str] = field(default_factory=dict)


class Sink(ABC):
    """Takes what a run shows. Constructors raise UserError where the service's package is not installed."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], *, images: int) -> None:
        """Writes numbers after `images` images. Raises OSError."""

    @abstractmethod
    def image(self, tag: str, array: Array, *, images: int) -> None:
        """Writes an image, uint8 (H, W, 1 or 3)."""

    @abstractmethod
    def histogram(self, tag: str, values: Tensor, *, images: int) -> None:
        """Writes the distribution of `values` (N,), where the service can show one."""

    @abstractmethod
    def close(self) -> None:
        """Writes what waits, and ends."""


class TensorBoard(Sink):
    """Event files in the run folder; what was logged there after `start.images` is not shown."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.writer = SummaryWriter(str(start.folder), purge_step=start.images + 1 if start.images else None)
        if not start.images:
            self.writer.add_text("config", "```yaml\n" + _yaml(start.settings) + "```", 0)
            values = {key: value for key, value in leaves(start.settings) if isinstance(value, (bool, int, float, str))}
            for summary in hparams(values, _OBJECTIVES):
                self.writer._get_file_writer().add_summary(summary)
        queue = self.writer._get_file_writer().event_writer._async_writer
        queue._writer = queue._worker._record_writer = self._records = _RecordWriter(queue._writer)

    def scalars(self, values: Mapping[str, float], *, images: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, images)
        if self._records.error is not None:
            raise self._records.error

    def image(self, tag: str, array: Array, *, images: int) -> None:
        self.writer.add_image(tag, array, images, dataformats="HWC")

    def histogram(self, tag: str, values: Tensor, *, images: int) -> None:
        self.writer.add_histogram(tag, values.clamp(-_LAST_BIN, _LAST_BIN), images)

    def close(self) -> None:
        self.writer.close()


class _RecordWriter:
    """TensorBoard's record writer. It keeps an error, such as of a full disk, for the training loop to raise.

    TensorBoard writes in a thread of its own, where an error would only print a traceback.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.error: OSError | None = None

    def write(self, data: bytes) -> None:
        self._attempt(self.inner.write, data)

    def flush(self) -> None:
        self._attempt(self.inner.flush)

    def close(self) -> None:
        self._attempt(self.inner.close)

    def _attempt(self, function: Callable[..., Any], *args: bytes) -> None:
        if self.error is None:
            try:
                function(*args)
            except OSError as error:
                self.error = error


class WandB(Sink):
    """Weights & Biases. Files go to wandb/ in the run folder.

    Online where WANDB_MODE says so, or where somebody has logged in and the server answers; else offline, from where
    `wandb sync` sends them later. Project, entity and server are those of WANDB_PROJECT and the like; the project is
    gancli where none is named. A run that goes on has the same id.
    """

    def __init__(self, start: Start) -> None:
        self.check()
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if _wandb_answers() else "offline")
        try:
            with without_messages("wandb"):
                self._run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT", "gancli"),
                    name=start.folder.resolve().name,
                    dir=str(start.folder),
                    id=start.ids.setdefault("wandb", uuid.uuid4().hex[:12]),
                    resume="allow",
                    mode=mode,  # type: ignore[arg-type]
                    config=dict(start.settings),
                    settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
                )
        except Exception as error:  # wandb raises all sorts
            raise UserError(f"log.sinks: wandb cannot begin: {_first_line(error)}") from None
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")
        if mode == "offline":
            log.info(
                "log.sinks: wandb is offline; to send this run: wandb sync %s", start.folder / "wandb" / "offline*"
            )

    @staticmethod
    def check() -> None:
        """Raises UserError for what can be known to fail before a run begins."""
        _require("wandb")
        mode = os.environ.get("WANDB_MODE")
        if mode is not None and mode not in ("online", "offline", "disabled", "shared"):
            raise UserError(f"log.sinks: WANDB_MODE={mode}: one of online, offline, disabled")
        if mode == "online" and not _has_login():
            raise UserError("log.sinks: WANDB_MODE=online, but nobody has logged in; run: wandb login")

    def scalars(self, values: Mapping[str, float], *, images: int) -> None:
        self._run.log({"images": images, **values})

    def image(self, tag: str, array: Array, *, images: int) -> None:
        import wandb

        self._run.log({"images": images, tag: wandb.Image(array[..., 0] if array.shape[2] == 1 else array)})

    def histogram(self, tag: str, values: Tensor, *, images: int) -> None:
        import wandb

        finite = values[values.isfinite()]
        if len(finite):
            self._run.log({"images": images, tag: wandb.Histogram(finite.detach().float().cpu().tolist())})

    def close(self) -> None:
        with without_messages("wandb"):
            self._run.finish()


def _wandb_server() -> SplitResult:
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def _has_login() -> bool:
    """Whether somebody has logged in to the server of Weights & Biases."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc().authenticators(_wandb_server().hostname or "") is not None
    return False


def _wandb_answers() -> bool:
    """Whether somebody has logged in, and the server of Weights & Biases can be reached."""
    return _has_login() and _reachable(_wandb_server())


def _reachable(url: SplitResult) -> bool:
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        with socket.create_connection((url.hostname or "", port), timeout=ONLINE_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class MLflow(Sink):
    """MLflow, at MLFLOW_TRACKING_URI, else in the folder mlruns, which `mlflow ui` shows.

    The experiment is that of MLFLOW_EXPERIMENT_NAME, else gancli. A run that goes on is the same run there; images are
    artifacts, in a folder for each tag. Histograms are left out: MLflow has none.
    """

    def __init__(self, start: Start) -> None:
        self.check()
        uri = self._uri()
        if uri.startswith("file:"):  # MLflow would rather have a database
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "gancli")
        try:
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
            self._id = self._continued(start.ids.get("mlflow")) or ""
            if not self._id:
                run = self._client.create_run(experiment, run_name=start.folder.resolve().name)
                self._id = start.ids["mlflow"] = run.info.run_id
                values = [(_allowed(key), str(value)[:_LONGEST_PARAM]) for key, value in leaves(start.settings)]
                params = [Param(key, value or "''") for key, value in values]
                for first in range(0, len(params), _PARAMS):
                    self._client.log_batch(self._id, params=params[first : first + _PARAMS])
        except MlflowException as error:
            raise UserError(f"log.sinks: mlflow at {_without_password(uri)}: {_first_line(error)}") from None

    @staticmethod
    def _uri() -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").resolve().as_uri()

    @classmethod
    def check(cls) -> None:
        """Raises UserError for what can be known to fail before a run begins."""
        _require("mlflow")
        uri = cls._uri()
        if uri.startswith(("http:", "https:")) and not _reachable(urlsplit(uri)):
            raise UserError(f"log.sinks: mlflow at {_without_password(uri)} does not answer; see MLFLOW_TRACKING_URI")

    def _continued(self, known: str | None) -> str | None:
        """Returns the id of the run that goes on; None where there is none, or it is not in this store."""
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):
            if known is not None and self._client.get_run(known) is not None:
                self._client.update_run(known, status="RUNNING")
                return known
        return None

    def scalars(self, values: Mapping[str, float], *, images: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_allowed(name), float(value), now, images) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def image(self, tag: str, array: Array, *, images: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"images-{images:012d}.png")
            file.write_bytes(image_grids.encode_png(np.asarray(array)))
            self._client.log_artifact(self._id, str(file), artifact_path=_allowed(tag))

    def histogram(self, tag: str, values: Tensor, *, images: int) -> None:
        pass

    def close(self) -> None:
        failed = sys.exc_info()[0] is not None  # closed because of an error that is on its way
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _allowed(name: str) -> str:
    """Returns a name with nothing in it that MLflow refuses."""
    return re.sub(r"[^\w./ :-]", "_", name)


class Forgiving(Sink):
    """A sink of another program or machine: where it fails while a run goes on, the run warns once and goes on."""

    def __init__(self, name: str, inner: Sink) -> None:
        self.name, self.inner, self.failed = name, inner, False

    def scalars(self, values: Mapping[str, float], *, images: int) -> None:
        self._attempt(lambda: self.inner.scalars(values, images=images))

    def image(self, tag: str, array: Array, *, images: int) -> None:
        self._attempt(lambda: self.inner.image(tag, array, images=images))

    def histogram(self, tag: str, values: Tensor, *, images: int) -> None:
        self._attempt(lambda: self.inner.histogram(tag, values, images=images))

    def close(self) -> None:
        self._attempt(self.inner.close)

    def _attempt(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # whatever their packages raise
            if not self.failed:
                reason = _first_line(error)
                log.warning("log.sinks: %s failed, and some of the run may be missing there: %s", self.name, reason)
            self.failed = True


REMOTE: dict[str, type[WandB] | type[MLflow]] = {"wandb": WandB, "mlflow": MLflow}
JSON_LINES = "jsonl"  # metrics.jsonl, which the run folder itself writes
NAMES = ("tensorboard", JSON_LINES, *REMOTE)


def open_sinks(names: Sequence[str], start: Start) -> list[Sink]:
    """Opens the sinks of these names but for JSON_LINES. Raises UserError."""
    opened: list[Sink] = [TensorBoard(start)] if "tensorboard" in names else []
    return [*opened, *(Forgiving(name, sink(start)) for name, sink in REMOTE.items() if name in names)]


def check_sinks(names: Sequence[str]) -> None:
    """Raises SettingError for a name that is no sink, and UserError where one could not begin."""
    for name in names:
        if name not in NAMES:
            raise SettingError(f"sinks={list(names)}: {name} is none of {', '.join(NAMES)}")
    if JSON_LINES not in names:
        raise SettingError(f"sinks={list(names)}: {JSON_LINES} is what gancli report and the diagnostics read; keep it")
    for name, sink in REMOTE.items():
        if name in names:
            sink.check()


def _require(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise UserError(f"log.sinks: {name} is not installed; run: pip install 'gancli[{name}]'")


def _yaml(settings: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(settings), sort_keys=False))
