"""What processes forked by `forked.py` need not import again. Begins no thread, and computes nothing with torch."""

import quick_hydra
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import gancli.cli
import gancli.commands.doctor
import gancli.commands.train
import gancli.networks.dcgan  # noqa: F401
from gancli.config import compose

quick_hydra.install()
compose("train", [])
