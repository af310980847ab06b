"""YAML of plain values: mappings, lists, strings, numbers, true, false and null, and nothing that is more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_LARGEST = 2**20  # bytes
_DEPTH = 40  # of values in each other


class _Loader(yaml.SafeLoader):
    """Refuses aliases, by which ten lines describe billions of values, and nesting that exhausts the stack."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name); write the value out")
        if self.depth == _DEPTH:
            raise yaml.YAMLError(f"its values are nested more than {_DEPTH} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_plain_yaml(file: Path) -> Any:
    """Returns the content of a YAML file. Raises OSError, and ValueError for what is no YAML of plain values."""
    with open(file, "rb") as opened:
        content = opened.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"larger than {_LARGEST} bytes")
    try:
        loaded = yaml.load(content.decode(), Loader=_Loader)
        _require_plain(loaded)
        return loaded
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{error.problem or error.context}{line}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def _require_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key is no text: {type(key).__name__}")
            _require_plain(item)
    elif isinstance(value, list):
        for item in value:
            _require_plain(item)
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a whole number has more than 64 bits")
    elif value is not None and not isinstance(value, (str, bool, int, float)):
        raise ValueError(f"a value is no text, number, true, false or null: {type(value).__name__}")


def plain_yaml(content: Any) -> str:
    """Returns `content` as YAML that `read_plain_yaml` reads."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
