"""Formulas that a user writes down: arithmetic and a few functions of x, and nothing else that Python could do."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_NAMES = {"pi": math.pi, "e": math.e}
FUNCTIONS = ("exp", "log", "sqrt", "erf", "sin", "cos", "tan", "atan", "tanh", "abs", "sigmoid")


def formula(text: str) -> Callable[[Tensor], Tensor]:
    """The function of x that `text` says, elementwise. Raises ValueError where it says anything else."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("is not a formula; write * for times and ** for powers") from None
    _check(tree)
    return lambda x: torch.as_tensor(_value(tree, x), dtype=x.dtype).expand_as(x)


def _check(node: ast.expr) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        _check(node.operand)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        if len(node.args) != 1 or node.keywords:
            raise ValueError(f"gives {node.func.id} other than one argument")
        _check(node.args[0])
    elif isinstance(node, ast.Name):
        if node.id != "x" and node.id not in _NAMES:
            raise ValueError(
                f"knows no {node.id}: x, {', '.join(_NAMES)}, or one of {', '.join(FUNCTIONS)} with brackets"
            )
    elif not (isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and abs(node.value) < 1e300):
        raise ValueError(f"holds {ast.unparse(node)}, which is no arithmetic of x")


def _value(node: ast.expr, x: Tensor) -> Any:
    """As tensors from the leaves on, so that no number grows past float64."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, x), _value(node.right, x))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand, x))
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        return getattr(torch, node.func.id)(_value(node.args[0], x))
    if isinstance(node, ast.Name):
        return x if node.id == "x" else x.new_tensor(_NAMES[node.id])
    assert isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
    return x.new_tensor(float(node.value))
