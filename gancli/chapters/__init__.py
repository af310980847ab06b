"""The chapters of the report that `gancli theory` writes, in its order."""

from gancli.chapters.base import Chapter
from gancli.chapters.collapse import ModeCollapse
from gancli.chapters.data import Capacity, Memorisation
from gancli.chapters.game import Behaviour, SaddlePoint
from gancli.chapters.line import InverseTransform, Objective

CHAPTERS: dict[str, type[Chapter]] = {
    "inverse_transform": InverseTransform,
    "objective": Objective,
    "saddle_point": SaddlePoint,
    "capacity": Capacity,
    "memorisation": Memorisation,
    "behaviour": Behaviour,
    "mode_collapse": ModeCollapse,
}
