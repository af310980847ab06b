"""Hydra for many commands in one process: reads each YAML once as long as it is the same, and composes a command once.

Nothing else of Hydra changes. Tests that start `python -m gancli` are without it.
"""

import functools
import pickle
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType

_load, _mode = ConfigRepository.load_config, Hydra.get_mode
_loaded = {}


@functools.wraps(_load)
def _load_once(self, config_path):
    source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
    if source is None or source.scheme() == "structured":
        return _load(self, config_path)
    key = source.path, config_path
    if source.scheme() == "file":
        key += ((Path(source.path) / source._normalize_file_name(config_path)).read_bytes(),)
    if key not in _loaded:
        _loaded[key] = pickle.dumps(_load(self, config_path))
    return pickle.loads(_loaded[key])


@functools.wraps(_mode)
def _mode_if_told(self, config_name, overrides):
    """Hydra composes once only to ask for hydra.mode, which is set on the command line or not at all."""
    return _mode(self, config_name, overrides) if any("hydra.mode" in word for word in overrides) else None


def install():
    ConfigRepository.load_config, Hydra.get_mode = _load_once, _mode_if_told
