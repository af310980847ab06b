"""By which settings a run goes on: its own, or those that were typed where they differ in nothing that matters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from gancli import config
from gancli.build import nodes
from gancli.distributed.launch import was_restarted
from gancli.errors import UserError
from gancli.overrides import typed
from gancli.training.run_folder import RunFolder

log = logging.getLogger(__name__)


def settings_to_continue(
    folder: RunFolder, settings: Mapping[str, Any], *, overrides: list[str], by_budget: Iterable[str] = ()
) -> tuple[dict[str, Any], bool]:
    """Returns the settings to train by, and whether a run in `folder` is continued.

    With `resume=<folder>` they are the run's own settings, with what `overrides` give on top. Those at the keys
    `by_budget` are the run's own in any case. Compares texts only and imports nothing that they name. Raises UserError
    where continuing would lose or mix up something.
    """
    resume, settings = str(settings["resume"]), dict(settings)
    if not folder.exists():
        return settings, False
    if resume == "never" and was_restarted():
        resume = "auto"  # the scheduler repeats the same command line
    if resume == "never":
        raise UserError(f"{folder.path} holds a run already; resume=auto continues it, or choose another hydra.run.dir")
    if resume == "auto":
        packages = [str(node["_target_"]).split(".")[0] for _, node in nodes(settings)]
        saved = folder.settings(trust=[*packages, "torch_fidelity"])  # only compared with what was typed
    else:
        saved = folder.settings(trust=settings["trust"])
        if not any(override.startswith("experiment=") for override in overrides):  # which sets everything
            settings = _apply_overrides(saved, settings, overrides)
    settings = _with_saved(saved, settings, by_budget)
    if settings.get("init") not in (None, saved.get("init")):
        log.warning(
            "init=%s: not used, since this run has begun already and goes on with its own weights", settings["init"]
        )
    settings["init"] = saved.get("init")
    changed = config.differences(saved, settings)
    if changed:
        raise UserError(
            f"{folder.path} was trained with other settings, so it cannot go on with these:\n  "
            + "\n  ".join(changed)
            + "\nUse the run's own settings, or start a new run in another hydra.run.dir; with "
            f"{typed('init', folder.path)} it begins with the weights of this one."
        )
    return settings, True


def _with_saved(saved: Mapping[str, Any], settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Returns the settings with the saved values at those of `keys` that are saved, and says where they differ."""
    kept: dict[str, Any] = copy.deepcopy(dict(settings))
    values = dict(config.leaves(saved))
    for key in [key for key in keys if key in values]:
        *parents, last = key.split(".")
        into = kept
        for name in parents:
            into = into[name]
        if into[last] != values[key]:
            log.info("%s stays %s, as this run began", key, values[key])
            into[last] = values[key]
    return kept


def _apply_overrides(saved: Mapping[str, Any], settings: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Returns the saved settings, with those of `settings` that `overrides` name."""
    merged: dict[str, Any] = copy.deepcopy(dict(saved))
    for override in overrides:
        group, _, place = override.lstrip("+").partition("=")[0].partition("@")
        *parents, last = (place or group.replace("/", ".")).split(".")
        into, value = merged, settings
        for name in parents:
            child, below = into.get(name), value.get(name)
            into[name] = child if isinstance(child, dict) else {}
            into, value = into[name], below if isinstance(below, Mapping) else {}
        if last in value:
            into[last] = value[last]
        else:
            into.pop(last, None)
    return merged
