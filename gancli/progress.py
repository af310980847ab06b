"""Progress of slow work, on stderr: a bar in a terminal, else a line in the log every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from gancli.distributed.launch import process_info

log = logging.getLogger(__name__)
T = TypeVar("T")
_FIRST, _EVERY = 3.0, 10.0  # seconds before the first line, and between two


def progress(items: Iterable[T], *, title: str, total: int, size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """Yields the items; meanwhile the main process shows how much of `total` is done. title: what is being done.

    size: of an item, as counted in `total`. The bar is removed at the end.
    """
    terminal, main = sys.stderr.isatty(), process_info().is_main_process
    began, due, done = time.monotonic(), time.monotonic() + _FIRST, 0
    with tqdm(desc=title, total=total, unit="", leave=False, disable=not (terminal and main)) as bar:
        for item in items:
            now = time.monotonic()
            if not terminal and now >= due and done:
                due, left = now + _EVERY, (now - began) / done * (total - done)
                log.info("%s: %s of %s, %.0f s left", title, f"{done:,}", f"{total:,}", left)
            yield item
            done += size(item)
            bar.update(size(item))
