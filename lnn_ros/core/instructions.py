"""Instructions that the C core executes, counted by callgrind: they hold where times do not.

A count depends on the compiler too; those that are written down are GCC 12's on x86-64-v3.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from lnn_ros.core import build

KNOWN = {
    'step/ncp32': 1_606,
    'step/dense64': 3_193,
    'step/dense128': 8_124,
    'step/wired32': 13_900,
    'step/wired64': 73_700,
    'encoder/64x48': 218_000,
    'resize/64x48': 57_900,
    'resize/640x480': 711_100,
}
"""Instructions per call; a tenth more is too many."""

_ARGUMENTS = {  # of steps.c: what, its size, and two counts whose difference leaves the set-up out
    'step/ncp32': ('step', 32, 100, 1100),
    'step/dense64': ('step', 64, 100, 1100),
    'step/dense128': ('step', 128, 100, 1100),
    'step/wired32': ('wired', 32, 20, 220),
    'step/wired64': ('dense', 64, 20, 220),
    'encoder/64x48': ('encode', 32, 2, 12),
    'resize/64x48': ('image', 64, 2, 12),
    'resize/640x480': ('image', 640, 2, 12),
}
_SOURCES = Path(__file__).parent


def missing() -> str:
    """Return what keeps the instructions from being counted here; '' when nothing does."""
    if platform.machine() != 'x86_64':
        return f'the known counts are for x86-64, this is {platform.machine()}'
    absent = [program for program in ('gcc', 'valgrind') if not shutil.which(program)]
    return f'install {" and ".join(absent)}' if absent else ''


def count() -> dict[str, int]:
    """Return the instructions of one call of each thing in `KNOWN`.

    Raises:
        RuntimeError: when the core cannot be compiled or counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / 'steps')
        sources = [str(_SOURCES / name) for name in ('steps.c', *build.SOURCES)]
        flags = [*build.FLAGS, '-D_POSIX_C_SOURCE=200112L']
        _run('gcc', *flags, *sources, '-lm', '-o', program)
        counts = {}
        for name, (what, size, few, many) in _ARGUMENTS.items():
            of_few, of_many = (_collected(program, what, size, times) for times in (few, many))
            counts[name] = (of_many - of_few) // (many - few)
    return counts


def _collected(program: str, what: str, size: int, times: int) -> int:
    callgrind = ('valgrind', '--tool=callgrind', '--callgrind-out-file=/dev/null')
    said = _run(*callgrind, program, what, str(size), str(times))
    return int(next(line for line in said.splitlines() if 'Collected' in line).split()[-1])


def _run(*command: str) -> str:
    """Return what a command says on standard error."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f'{" ".join(command[:2])} failed: {done.stderr.strip()[-500:]}')
    return done.stderr
