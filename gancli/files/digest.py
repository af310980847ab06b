"""A hash of tensors by their content, under which features and classifiers are cached."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def digest(*tensors: Tensor) -> str:
    """Returns a short hash of shapes, types and contents."""
    state = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
