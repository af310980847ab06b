"""The layout of the package: imports run downward only and never in a circle, also those for type checking."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import gancli

PACKAGE = Path(gancli.__file__).parent
ROOMS = [  # each imports from those before it only
    *("__init__", "errors", "files", "overrides", "randomness", "schedules", "distributed", "progress"),
    *("build", "device"),
    *("distributions", "priors", "losses", "augment", "networks", "datasets", "budget", "config", "metrics"),
    *(
        "game",
        "game_value",
        "penalties",
        "updates",
        "optimizers",
        "reporting",
        "training",
        "inference",
        "diagnostics",
        "theory",
    ),
    *("commands", "cli", "api", "__main__"),
]
FILES = {
    ".".join(["gancli", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imports(file):
    """The modules of gancli that a file imports, wherever the import statement stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in FILES)
            if any(f"{node.module}.{alias.name}" not in FILES for alias in node.names):
                yield node.module


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def test_every_top_level_entry_has_its_place():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries == set(ROOMS)


def test_imports_run_downward_only():
    upward = [
        f"{module} imports {imported}"
        for module, file in FILES.items()
        for imported in imports(file)
        if ROOMS.index(room(imported)) > ROOMS.index(room(module))
    ]
    assert not upward


def test_no_imports_in_a_circle():
    graph = {module: set(imports(file)) - {module} for module, file in FILES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules of a circle


def test_the_reading_of_imports_sees_every_kind(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom gancli import config\n"
        "if TYPE_CHECKING:\n    from gancli.game import Game\n"
        "def later():\n    import gancli.cli\n    from gancli.training.trainer import Trainer\n"
    )
    assert set(imports(file)) == {"gancli.config", "gancli.game", "gancli.cli", "gancli.training.trainer"}
