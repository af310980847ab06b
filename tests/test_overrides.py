"""Words of a command line: taken as typed, and printed as they can be typed again."""

import inspect
import shlex
import types
import typing
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from gancli import config, overrides
from gancli.build import nodes, resolve
from gancli.errors import UserError

AWKWARD = [
    *("a b", "it's", 'say "x"', "a,b", "a=b", "[a]", "a(1)", "sw/lr=1,seed=2 [a]", "$HOME", "${x}", "a\\${b}", "{a:b}"),
    *(
        "x\\",
        "\\'",
        '\\"',
        "C:\\x\\y z",
        "'",
        '"',
        "a'b\"c\\'d\\\"",
        "ü/ö",
        "日本語",
        "#x",
        "!x",
        "a|b;c&d",
        "`ls`",
        "*",
    ),
    *("a\nb", " a ", "2024_01_05", "1e3", "007", "null", "True", "nan", ".5", "-1", "1/2", "~x", "e5", "/a/b.c"),
]


def read(word):
    """What a setting is to gancli after Hydra has read the word."""
    parsed = OverridesParser.create().parse_override(word)
    settings = OmegaConf.create({"run": parsed.value()})
    return OmegaConf.to_container(settings, resolve=True)["run"]


@pytest.mark.parametrize("name", AWKWARD)
def test_what_is_printed_is_read_back_by_shell_and_hydra(name):
    (word,) = shlex.split(overrides.typed("run", name))
    expected = f"./{name}" if name.startswith("~") else name
    assert word == overrides.setting("run", name)
    assert [read(each) for each in (word, *(overrides.as_typed(word, sweep=sweep) for sweep in (False, True)))] == (
        [expected] * 3
    )


@pytest.mark.parametrize(
    "name", [name for name in AWKWARD if not set("\\$") & set(name) and name not in ("null", "[a]")]
)
def test_text_is_taken_as_it_was_typed(name):
    assert read(overrides.as_typed(f"dataset.path={name}", sweep=False)) == name


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("run=[0, 007,'a,b',c d]", ["0", "007", "a,b", "c d"]),
        ("run=[]", []),
        ("run=null", None),
        ("+out=1_0", "1_0"),
        ("hydra.run.dir=a/1,lr=${x}", "a/1,lr=5"),
        (r"run=a\ b\,c", "a b,c"),
        ("dataset.distribution.cdf=1 - exp(-x**2)", "1 - exp(-x**2)"),
        ("train.images=3e5", 300_000),
        ("x=[1.5e3,2e-4]", [1500, 0.0002]),
        ("x='3e5'", "3e5"),
        ("x=1e400", float("inf")),
    ],
)
def test_lists_null_interpolations_and_numbers(word, expected):
    value = OverridesParser.create().parse_override(overrides.as_typed(word, sweep=False)).value()
    found = OmegaConf.to_container(OmegaConf.create({"x": 5, "value": value}), resolve=True)["value"]
    assert found == expected and type(found) is type(expected)


def test_a_sweep_over_text_keeps_each_text():
    parse = OverridesParser.create().parse_override
    swept = parse(overrides.as_typed("run=2024_01_05,1e3,'a,b',~/x", sweep=True))
    assert list(swept.sweep_string_iterator()) == ['"2024_01_05"', '"1e3"', "'a,b'", '"~/x"']
    assert overrides.as_typed("run=glob(*)", sweep=True) == "run=glob(*)"
    assert overrides.as_typed("x=interval(1e0,1e2)", sweep=True) == "x=interval(1e0,1e2)"


def test_a_folder_that_hydra_makes_may_be_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "at home"))
    for word in ("hydra.run.dir=~/runs/a", "hydra.sweep.dir='~/runs/a'"):
        assert read(overrides.as_typed(word, sweep=False)) == str(tmp_path / "at home/runs/a")
    with pytest.raises(UserError, match=r"hydra.run.dir=~nobody-of-that-name/a: no such home"):
        overrides.as_typed("hydra.run.dir=~nobody-of-that-name/a", sweep=False)


def holds(hint, kinds):
    """Whether a type is one of `kinds`, an option of a union is, or an item of a list."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, list):
        return any(holds(option, kinds) for option in typing.get_args(hint))
    return hint in kinds


def declared():
    """Every setting of text alone by its dotted key, as declared by a command or by the class that takes it."""
    from gancli.commands import evaluate, export, project, report, sample, theory

    commands = (evaluate, export, project, report, sample, theory)
    schemas = [config.RUN_SCHEMA, *(command.SCHEMA for command in commands)]
    hints = [item for schema in schemas for item in schema.items()]
    places = {"distribution": "dataset.distribution", "metric/features": "metric.features"}
    for file in config.config_dir().glob("**/*.yaml"):
        group = file.parent.relative_to(config.config_dir()).as_posix()
        if group.startswith("hydra"):
            continue
        place = "" if group == "." else places.get(group, group.replace("/", "."))
        for key, node in nodes(yaml.safe_load(file.read_text())):
            target = resolve(node["_target_"], key="")
            found = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
            hints += [
                (".".join(filter(None, (place, key, name))), hint) for name, hint in found.items() if name in node
            ]
    texts = {key for key, hint in hints if holds(hint, (str, Path)) and not holds(hint, (int, float, bool))}
    return texts | {key.replace("dataset", "prior", 1) for key in texts if key.startswith("dataset.distribution.")}


def test_settings_of_text_are_those_that_are_declared_as_text():
    assert {key for key in overrides.TEXTS if not key.startswith("hydra")} == declared()
