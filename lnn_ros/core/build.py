"""How the compiled module `lnn_ros.core._core` is made; setup.py, the tests and the benchmarks ask.

Nothing is imported here but the standard library: setup.py runs this file before anything is there.
"""

from __future__ import annotations

SOURCES = ('engine.c', 'image.c', 'kernels.c', 'kernels_v3.c', 'kernels_v4.c')
"""The core itself; it needs no Python."""

MODULE = ('module.c', *SOURCES)
INCLUDED = ('core.h', 'elementary.h', 'kernels.h', 'kernels_cells.c', 'module_view.c')

FLAGS = (
    '-std=c99',
    '-O3',
    '-fvisibility=hidden',
    '-ffp-contract=fast',  # fused multiply-add, which -std=c99 would switch off
    '-fno-math-errno',
    '-fno-trapping-math',  # selects may be computed both ways: needed to vectorise them
    '-Wall',
    '-Wextra',
)
