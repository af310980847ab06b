"""`--help` of a command, and `--cfg job`. Does not import torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from gancli.commands.composition import Composition, annotated_yaml, compose, join
from gancli.commands.sweeps import first_run
from gancli.config import config_dir
from gancli.overrides import typed_value

SECTIONS = {  # of `gancli train`; a key that is in none of them comes last
    "Data and networks": ("dataset", "conditional", "prior", "network", "augment", "pack"),
    "The game": ("loss", "penalty", "update", "optimizer", "ema"),
    "Training": ("train", "seed", "device", "resume", "init", "freeze", "trust"),
    "Logging and checkpoints": ("log", "checkpoint", "diagnostic"),
    "Evaluation and warnings": ("evaluation", "metric", "health", "objective"),
}
_COLUMN = 42  # in which comments begin


def printed(command: str, words: list[str]) -> str | None:
    """Returns what the flags `--help` and `--cfg job` print; None where Hydra is to do the work.

    Raises UserError, and Hydra's exceptions for words that do not compose.
    """
    if not any(word.startswith(("-h", "--help", "-c", "--cfg")) for word in words):
        return None
    from hydra._internal.utils import get_args_parser

    flags = get_args_parser().parse_args(words)
    if not flags.help and (flags.cfg != "job" or flags.multirun):
        return None
    overrides, _ = first_run(["--multirun", *flags.overrides] if flags.multirun else flags.overrides)
    more = Path(flags.config_dir) if flags.config_dir else None
    composition = compose(command, overrides, more=more, resolve=flags.resolve)
    if not flags.help:
        return annotated_yaml(composition, package="" if flags.package == "_global_" else flags.package or "")
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 120)
    return Help(command, composition, width=width).text(overrides)


class Help:
    """The help of a command. width: columns."""

    def __init__(self, command: str, composition: Composition, *, width: int) -> None:
        self.command, self.composition, self.width = command, composition, width
        self._listed = set[str]()  # groups whose choices were listed

    def text(self, overrides: list[str]) -> str:
        """Returns every setting with its comment.

        Where `overrides` choose from groups, other than recipes, the choices of these groups, and the settings of the
        ones that are chosen.
        """
        typed = [word.lstrip("+").partition("=")[0] for word in overrides if "=" in word]
        groups = [key for key in typed if key != "experiment" and (config_dir() / key.partition("@")[0]).is_dir()]
        if groups:
            body = [line for group in groups for line in self._group(group)]
        else:
            body = [*self._recipes(), *self._settings(), *self._unused_groups()]
        usage = [f"usage: gancli {self.command} [group=choice …] [key=value …]"]
        if self.composition.choices:
            usage.append(
                f"`gancli {self.command} --help GROUP=CHOICE` lists the choices of a group and explains that one."
            )
        return "\n".join([*self._wrap(self.composition.header), "", *usage, *body, "", self.composition.footer])

    def _recipes(self) -> list[str]:
        lines = self._choices("experiment") if self.command in ("train", "doctor") else []
        return ["", "Recipes, in which everything can be overridden:", "", *lines] if lines else []

    def _settings(self) -> Iterator[str]:
        settings = self.composition.settings
        sections: dict[str, tuple[str, ...]] = SECTIONS if self.command in ("train", "doctor") else {}
        known = {key for keys in sections.values() for key in keys}
        others = [key for key in settings if key not in known]
        others.sort(key=lambda key: key in self.composition.choices)  # the command's own settings first
        for title, keys in [*sections.items(), ("Settings", others)]:
            was_section = False
            for number, key in enumerate(key for key in keys if key in settings):
                is_section = isinstance(settings[key], Mapping)
                yield from ["", f"{title}:"] if not number else []
                yield from [""] if not number or is_section or was_section else []
                yield from self._entries(key)
                was_section = is_section

    def _unused_groups(self) -> list[str]:
        """Returns the groups of which this composition has no choice, such as schedules."""
        if self.command not in ("train", "doctor"):
            return []
        groups = {folder.name for folder in config_dir().iterdir() if folder.is_dir()}
        unused = sorted(groups - self._listed - {"experiment", "hydra"})
        lines = [
            line
            for group in unused
            for line in self._line(f"+{group}@KEY=…", f"for one setting: {', '.join(self.composition.options(group))}")
        ]
        return ["", "More groups:", "", *lines] if lines else []

    def _group(self, typed: str) -> Iterator[str]:
        name = typed.partition("@")[0]
        yield from ["", f"Choices of {name}:", "", *self._choices(name)]
        self._listed.add(name)
        for key, choice in self.composition.choices.items():
            if choice.group == typed or key == typed.partition("@")[2]:
                yield from ["", *self._entries(key)]

    def _choices(self, group: str) -> list[str]:
        composition = self.composition
        return [
            line
            for name in composition.options(group)
            for line in self._line(f"{group}={name}", composition.description(f"{group}/{name}"))
        ]

    def _entries(self, key: str) -> Iterator[str]:
        """Yields the lines of the setting `key` and of all that are below it."""
        value, comment = self.composition.value(key), self.composition.comments.get(key, "")
        choice = self.composition.choices.get(key)
        if choice is not None:
            chosen = typed_value(choice.names if choice.is_list else choice.names[0])
            yield from self._line(f"{choice.group}={chosen}", comment)
            group = choice.group.partition("@")[0]
            if group not in self._listed:
                others = [name for name in self.composition.options(group) if name not in choice.names]
                yield from self._wrap(f"or {', '.join(others)}", indent=6)
                self._listed.add(group)
        elif not isinstance(value, Mapping):
            yield from self._line(
                f"{key}={typed_value(value)}", comment + ("; must be given" if value == "???" else "")
            )
        elif comment:
            yield from self._line(key, comment)
        for name in value if isinstance(value, Mapping) else []:
            if name != "_target_":
                yield from self._entries(join(key, name))

    def _line(self, left: str, comment: str) -> list[str]:
        """Returns `left`, and the comment beside it, or below where it is too long."""
        if len(left) + 4 > _COLUMN:
            return [f"  {left}", *self._wrap(comment, indent=_COLUMN)]
        first, *more = self._wrap(comment, indent=_COLUMN) or [""]
        return [f"  {left:{_COLUMN - 2}}{first.strip()}".rstrip(), *more]

    def _wrap(self, text: str, *, indent: int = 0) -> list[str]:
        margin = " " * indent  # words such as keys stay whole
        return textwrap.wrap(
            text,
            self.width,
            initial_indent=margin,
            subsequent_indent=margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
