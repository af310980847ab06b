"""The chapters of the report that `gancli theory` writes, in its order."""

from gancli.theory.base import Chapter
from gancli.theory.capacity import Capacity, Memorisation
from gancli.theory.inverse_transform import InverseTransform, Objective
from gancli.theory.mode_collapse import ModeCollapse
from gancli.theory.saddle_point import Behaviour, SaddlePoint

CHAPTERS: dict[str, type[Chapter]] = {
    "inverse_transform": InverseTransform,
    "objective": Objective,
    "saddle_point": SaddlePoint,
    "capacity": Capacity,
    "memorisation": Memorisation,
    "behaviour": Behaviour,
    "mode_collapse": ModeCollapse,
}
