"""What type checkers and editors see of the package: see `gancli.api`."""

from gancli.api import Diverged as Diverged
from gancli.api import Projection as Projection
from gancli.api import TrainedGenerator as TrainedGenerator
from gancli.api import UserError as UserError
from gancli.api import load as load
from gancli.api import train as train

__version__: str
