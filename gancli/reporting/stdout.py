"""Results on standard output, which is free for them: logs, warnings and progress go to standard error."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Iterable

from gancli.distributed.launch import process_info

_ASCII = {"↓": "v", "↑": "^", "±": "+-"}


def print_lines(lines: Iterable[str]) -> None:
    """Prints lines, in the main process; where the encoding lacks a character, an ASCII one stands for it."""
    if not process_info().is_main_process:
        return
    text = "\n".join(lines)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        for character, replacement in _ASCII.items():
            text = text.replace(character, replacement)
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    print(text, flush=True)


def terminal_width() -> int | None:
    """Returns the columns of the terminal that standard output is; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
