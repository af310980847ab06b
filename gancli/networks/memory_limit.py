"""Refuses networks that would not fit into memory before their weights are allocated."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gancli.errors import SettingError, UserError, require_memory

_FLOAT = 4  # bytes


class MemoryChecked(TorchFunctionMode):
    """Raises UserError where the weights that are made, and their gradients, come to take more memory than there is.

    It does so before they are allocated. sizes: the settings of which the largest is named.
    """

    def __init__(self, sizes: Mapping[str, float]) -> None:
        super().__init__()
        self.sizes, self.numbers = sizes, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.randn):  # by which layers make their weights
            shape = kwargs.get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
            self.numbers += prod(shape)
            try:
                require_memory(2 * _FLOAT * self.numbers, **self.sizes)
            except SettingError as error:
                raise UserError(str(error)) from None  # which has the whole keys already
        return func(*args, **kwargs)
