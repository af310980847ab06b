"""Processes of their own without the seconds of a start: forked from a server that has imported torch and gancli.

What a forked process cannot show is the start itself, since its modules have been imported and have read their
environment variables. Tests of that start `python -m gancli`.
"""

import atexit
import multiprocessing
import os
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

SERVER = multiprocessing.get_context("forkserver")


def command_line(*words):
    """`gancli WORDS` in this process, which it ends."""
    from gancli.cli import main

    sys.argv = ["gancli", *map(str, words)]
    main()


class Forked:
    """A process that calls `function(*args)`, in the folder `cwd` and with these variables in its environment.

    The function is one of a module's, as `command_line` is. Whatever it prints goes to files.
    """

    def __init__(self, function, *args, cwd=".", **variables):
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        self._files = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._files]
        start_server()
        self._process = SERVER.Process(target=_enter, args=(environment, os.path.abspath(cwd), names, function, args))
        self._process.start()
        self.pid, self.kill = self._process.pid, self._process.kill

    def ended(self, timeout=300):
        """Returns (status, out, err) of the process when it has ended; one that hangs is killed, and fails the test."""
        self._process.join(timeout)
        hangs = self._process.exitcode is None
        self.kill()
        assert not hangs, self._files[1].read().decode()
        return (self._process.exitcode, *(file.read().decode() for file in self._files))


def start_server():
    """Starts the server, once; with a thread for each core, a process forked from it could not use OpenMP."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path):
        forkserver.set_forkserver_preload(["preloaded"])
        forkserver.ensure_running()


def _enter(environment, folder, files, function, args):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, (name, stream) in enumerate(zip(files, ("stdout", "stderr"), strict=True), start=1):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
        setattr(sys, stream, open(number, "w", closefd=False))  # noqa: SIM115
    try:
        function(*args)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
