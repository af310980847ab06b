"""The standard streams of a command, which may be closed, full, without a reader, or of an encoding of few letters."""

from __future__ import annotations

import codecs
import io
import logging
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from gancli.distributed.launch import process_info
from gancli.errors import printable

ERRORS = "gancli.ascii"  # name of the error handler below, which any encoding can be given
_ASCII = {"↓": "v", "↑": "^", "±": "+-", "×": "x", "“": '"', "”": '"', "‘": "'", "’": "'", "—": "-"}


def prepare_streams() -> None:
    """Lets a command write to its standard streams whatever they are. Call it before any file is opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by the caller: the next file to be opened would take its number
            _send_to_nowhere(number)
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ERRORS)
    error = open(2, "wb", closefd=False)  # noqa: SIM115
    sys.stderr = _UntilGone(error, encoding=sys.stderr.encoding, errors=ERRORS, line_buffering=True)
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback on the screen


class _UntilGone(io.TextIOWrapper):
    """Standard error, whose reader or terminal may go away while a run goes on: what comes then is dropped."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            _send_to_nowhere(2)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _send_to_nowhere(2)


def _send_to_nowhere(number: int) -> None:
    """Makes a standard stream one that takes everything, what waits in its buffer too."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, number)
    if null != number:
        os.close(null)
    os.set_inheritable(number, True)


def print_lines(lines: Iterable[str]) -> None:
    """Prints results in the main process, on standard output, which is for them alone.

    A reader that has read enough, such as `head`, is no error. Raises OSError for a full disk.
    """
    if not process_info().is_main_process:
        return
    encoding = sys.stdout.encoding or "ascii"
    text = "\n".join(map(plain, lines)).encode(encoding, ERRORS).decode(encoding)
    try:
        print(text, flush=True)
    except OSError as error:
        _send_to_nowhere(1)  # Python flushes the stream once more at its end
        if not isinstance(error, BrokenPipeError):
            error.filename = "standard output"
            raise


def plain(text: str) -> str:
    """Returns the text with nothing in it that moves the cursor or colours the screen but the ends of its lines."""
    return "\n".join(map(printable, text.split("\n")))


def terminal_width() -> int | None:
    """Returns the columns of the terminal that standard output is; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class LogFormatter(logging.Formatter):
    """Formats a record of the log as `plain` text: it may hold names of files and texts from elsewhere."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


@contextmanager
def without_messages(*loggers: str) -> Iterator[None]:
    """Keeps back what these loggers tell below errors."""
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(found, before, strict=True):
            logger.setLevel(level)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Returns similar ASCII for the characters that an encoding lacks, or their escapes, and where they end."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(map(_similar, letters)), error.end


def _similar(letter: str) -> str:
    decomposed = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    escape = printable(letter)  # of what is no text
    return _ASCII.get(letter) or decomposed or (escape if escape != letter else ascii(letter)[1:-1])


codecs.register_error(ERRORS, _in_ascii)
