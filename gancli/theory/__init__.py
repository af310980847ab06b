"""The chapters of the report that `gancli theory` writes, in its order."""

from gancli.theory.base import Chapter
from gancli.theory.behaviour import Behaviour
from gancli.theory.capacity import Capacity
from gancli.theory.inverse_transform import InverseTransform
from gancli.theory.memorisation import Memorisation
from gancli.theory.mode_collapse import ModeCollapse
from gancli.theory.objective import Objective
from gancli.theory.saddle_point import SaddlePoint

CHAPTERS: dict[str, type[Chapter]] = {
    "inverse_transform": InverseTransform,
    "objective": Objective,
    "saddle_point": SaddlePoint,
    "capacity": Capacity,
    "memorisation": Memorisation,
    "behaviour": Behaviour,
    "mode_collapse": ModeCollapse,
}
