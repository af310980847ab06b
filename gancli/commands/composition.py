"""What a command line composes to, with the comments of the YAML files that it comes from. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gancli import budget
from gancli.config import config_dir
from gancli.errors import UserError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice from a group. group: as typed, such as optimizer@optimizer.generator. names: several for a list."""

    group: str
    names: list[str]
    is_list: bool


@dataclass(kw_only=True)
class Composition:
    """The settings of a command line.

    settings: plain values, without Hydra's own. comments: of dotted keys. choices: by the key at which each is placed.
    header, footer: the first and the last lines of the command's help. folders: where groups are looked for.
    """

    settings: dict[str, Any]
    header: str
    footer: str
    folders: list[Path]
    comments: dict[str, str] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        """Returns the value, or the section, at a dotted key; "" is everything. Raises UserError."""
        node: Any = self.settings
        for part in key.split(".") if key else []:
            if not isinstance(node, Mapping) or part not in node:
                raise UserError(f"{key}: no such key")
            node = node[part]
        return node

    def options(self, group: str) -> list[str]:
        """Returns the names of all choices of a group."""
        return sorted({file.stem for folder in self.folders for file in (folder / group).glob("*.yaml")})

    def file(self, path: str) -> Path | None:
        """Returns the YAML file of "group/choice" or of a command; None for Hydra's own."""
        files = (folder / f"{path}.yaml" for folder in self.folders)
        return next((file for file in files if file.is_file()), None)

    def description(self, path: str) -> str:
        """Returns what the choice "group/choice" says of itself."""
        file = self.file(path)
        return read_comments(file)[0] if file else ""


def compose(command: str, overrides: list[str], *, more: Path | None = None, resolve: bool = False) -> Composition:
    """Composes a command line. more: a folder of more groups. resolve: whether to replace interpolations.

    Raises Hydra's exceptions.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    name = "train" if command == "doctor" else command  # which takes the same settings
    words = ["hydra/help=doctor"] if command == "doctor" else []
    words += [f"hydra.searchpath=['file://{more.absolute()}']"] if more else []
    words += overrides
    budget.register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = hydra.compose(name, words, return_hydra_config=True)
        files = GlobalHydra.instance().config_loader().compute_defaults_list(name, words, RunMode.RUN).defaults
    help_texts = config.hydra.help
    with open_dict(config):
        del config["hydra"]
    result = Composition(
        settings=dict(OmegaConf.to_container(config, resolve=resolve)),  # type: ignore[arg-type]
        header=help_texts.header,
        footer=help_texts.footer,
        folders=[config_dir(), *([more] if more else [])],
    )
    for each in files:
        file = result.file(str(each.config_path))
        if file is None or str(each.config_path).startswith("hydra/"):
            continue
        package, (group, _, choice) = each.package or "", str(each.config_path).rpartition("/")
        description, comments = read_comments(file)
        # The file that sets a key first says what it means; a recipe, which comes last, says why it changes it.
        result.comments = {join(package, key): text for key, text in comments.items()} | result.comments
        if group and package:
            is_list = each.override_key is None
            before = result.choices[package].names if is_list and package in result.choices else []
            typed, names = each.override_key or group, [*before, choice]  # a choice comes after those that it builds on
            result.choices[package] = Choice(group=typed, names=names, is_list=is_list)
            result.comments[join(package, choice) if is_list else package] = description
    return result


@cache
def read_comments(file: Path) -> tuple[str, dict[str, str]]:
    """Returns the first line of comment of a YAML file, and the comment beside each dotted key."""
    text, comments = file.read_text(encoding="utf-8"), dict[str, str]()
    lines = text.splitlines()

    def walk(node: yaml.Node | None, path: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
            is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
            end = key.end_mark if is_block else value.end_mark
            comment = lines[end.line][end.column :].partition("# ")[2]
            if comment:
                comments[join(path, key.value)] = comment.strip()
            walk(value, join(path, key.value))

    walk(yaml.compose(text, Loader=_Loader), "")
    first = (line[1:].strip() for line in lines if line.startswith("#") and not line.startswith("# @package"))
    return next(first, ""), comments


def annotated_yaml(composition: Composition, *, package: str = "") -> str:
    """Returns the settings at and below the key `package` as YAML, with their comments. Raises UserError."""
    node = composition.value(package)
    if not isinstance(node, Mapping):
        return str(node)
    head = [f"# @package {package}"] if package else []
    return "\n".join([*head, *_yaml_lines(node, package, composition.comments)])


def _yaml_lines(node: Mapping[str, Any], path: str, comments: Mapping[str, str], indent: str = "") -> Iterator[str]:
    from omegaconf import OmegaConf

    for name, value in node.items():
        key = join(path, name)
        comment = f"  # {comments[key]}" if key in comments else ""
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:{comment}"
            yield from _yaml_lines(value, key, comments, indent + "  ")
            continue
        first, *more = OmegaConf.to_yaml(OmegaConf.create({name: value})).splitlines()
        yield indent + first + ("" if isinstance(value, str) and more else comment)  # not into a text of several lines
        yield from (indent + line for line in more)


def join(path: str, name: str) -> str:
    """Returns the dotted key of `name` below `path`."""
    return f"{path}.{name}" if path else name
