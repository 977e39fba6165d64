"""The C core for another processor, and under the fuzzer, as far as this machine has the tools."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lnn_ros.core import build

TEST = Path(__file__).parents[1]
CORE = TEST.parent / 'lnn_ros' / 'core'
SOURCES = [CORE / name for name in build.SOURCES]
PLAIN = ['-std=c99', '-D_POSIX_C_SOURCE=200112L', f'-I{CORE}', '-Wall', '-Wextra', '-Werror']


def needs(*programs: str, package: str):
    missing = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(
        bool(missing), reason=f'no {" and no ".join(missing)}: apt-get install {package}'
    )


def run(*command) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


@needs('aarch64-linux-gnu-gcc', package='gcc-aarch64-linux-gnu')
@pytest.mark.parametrize('real', ['float', 'double'])
def test_core_compiles_for_aarch64_and_runs_there(real, tmp_path) -> None:
    flags = [*PLAIN, *build.FLAGS, *(['-DLNN_DOUBLE'] if real == 'double' else [])]
    program = tmp_path / 'driver'
    sources = [TEST / 'unit' / 'core_driver.c', *SOURCES]
    done = run('aarch64-linux-gnu-gcc', *flags, '-static', *sources, '-lm', '-o', program)
    assert done.returncode == 0, done.stderr
    if not shutil.which('qemu-aarch64'):
        pytest.skip('compiled, but no qemu-aarch64 to run it: apt-get install qemu-user')
    done = run('qemu-aarch64', program)
    assert done.returncode == 0, done.stderr
    engines, images, scans = (int(word) for word in done.stdout.split() if word.isdigit())
    assert engines > 100 and images > 100 and scans > 100


@needs('clang', package='clang libclang-rt-14-dev')
def test_fuzzer_of_the_core_finds_nothing_in_a_thousand_runs(tmp_path) -> None:
    program, sources = tmp_path / 'fuzzer', [TEST / 'fuzz' / 'core_fuzzer.c', *SOURCES]
    sanitizers = ['-fsanitize=fuzzer,address,undefined', '-fno-sanitize-recover=all']
    command = ['clang', *PLAIN, '-D__SANITIZE_ADDRESS__', '-O1', *sanitizers, *sources]
    done = run(*command, '-lm', '-o', program)
    if 'libclang_rt' in done.stderr:
        pytest.skip('clang has no libFuzzer: apt-get install libclang-rt-14-dev')
    assert done.returncode == 0, done.stderr
    corpus = tmp_path / 'corpus'
    corpus.mkdir()
    done = subprocess.run(
        [program, '-runs=1000', '-seed=1', '-len_control=0', '-max_len=1024', corpus],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'Done 1000 runs' in done.stderr
    assert len(list(corpus.iterdir())) > 50  # it gets somewhere
