"""How the compiled module `lnn_ros.core._core` is made; setup.py and the tests run this.

cffi in API mode: the compiler, not a guess, checks every declaration. The header is the only place
where they stand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SOURCES = ('engine.c', 'image.c', 'kernels.c', 'kernels_v3.c')
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


def builder(
    name: str = 'lnn_ros.core._core',
    real: str = 'float',
    folder: str = 'lnn_ros/core',
    flags: tuple[str, ...] = FLAGS,
) -> Any:
    """Return the cffi.FFI that builds module `name`.

    Args:
        real: `float` (32 bits) or `double` (64 bits), the type that everything is computed in.
        folder: where the C sources are, relative to the working directory or absolute.
        flags: for the compiler.
    """
    import cffi

    header = (Path(folder) / 'core.h').read_text()
    declarations = header[header.index('/* cdef: ') : header.index('/* end */')]
    ffi = cffi.FFI()
    ffi.cdef(f'typedef {real} real;\n' + declarations)
    ffi.set_source(
        name,
        '#include "core.h"',
        sources=[f'{folder}/{source}' for source in SOURCES],
        depends=[f'{folder}/{h}' for h in ('core.h', 'elementary.h', 'kernels.h', 'kernels.c')],
        include_dirs=[folder],
        define_macros=[('LNN_DOUBLE', None)] if real == 'double' else [],
        extra_compile_args=list(flags),
        libraries=['m'],
        optional=True,  # no compiler: a warning instead of an error
    )
    return ffi
