"""How the compiled modules of `lnn_ros.core` are made; setup.py, the tests and the benchmarks ask.

Nothing is imported here but the standard library: setup.py runs this file before anything is there.
"""

from __future__ import annotations

SOURCES = (
    *('engine.c', 'image.c', 'kernels.c', 'kernels_v3.c', 'kernels_v4.c', 'sequence.c'),
    'synapses.c',
)
"""The core itself; it needs no Python."""

MODULE = ('module.c', *SOURCES)
INCLUDED = (
    'core.h',
    'elementary.h',
    'kernels.h',
    'kernels_cells.c',
    'kernels_scan.c',
    'module_scan.c',
    'module_view.c',
)
PRECISIONS = {'_core': (), '_core_double': (('LNN_DOUBLE', None),)}
"""Names and macros of the modules that setup.py makes of it: float32, and float64 for training."""

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
