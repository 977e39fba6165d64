"""Whatever a policy file says, loading and running it ends in an answer or a refusal."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lnn_ros.core import build, open_engine
from lnn_ros.core.numpy_engine import NumpyEngine
from lnn_ros.policy import CELLS, FORMAT_VERSION, Policy, content_sha256, load
from lnn_ros.schema import PolicyError

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / 'lnn_ros' / 'core'
HOSTILE: list[Any] = [
    0, 1, -1, 2, 7, 4096, 4097, 65536, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 1e-308, 0.0,
    -0.0, float('nan'), float('inf'), True, None, '', 'x', [], {}, [[]],
]  # fmt: skip


def document_of(policy: Policy) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(policy.contract)))


def write(path: Path, contract: Any, tensors: dict[str, np.ndarray]) -> Path:
    document = {
        'format_version': FORMAT_VERSION,
        'contract': contract,
        'sha256': content_sha256(contract, tensors),
    }
    path.write_bytes(safetensors.numpy.save(tensors, {'lnn_ros': json.dumps(document)}))
    return path


def places(value: Any, trail: tuple = ()) -> list[tuple]:
    """Return the way to every entry of a document."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inside in entries:
        found.append((*trail, key))
        if isinstance(inside, dict | list):
            found += places(inside, (*trail, key))
    return found


def put(document: Any, trail: tuple, value: Any) -> None:
    for key in trail[:-1]:
        document = document[key]
    document[trail[-1]] = value


def run(policy: Policy) -> None:
    contract = policy.contract
    for engine in (open_engine(policy), NumpyEngine(policy)):
        if contract.image:
            shape = (contract.image.channels, contract.image.height, contract.image.width)
            engine.hold_image(np.ones(shape, np.float32))
            engine.hold_image_age(0.1)
        if contract.imu:
            engine.hold_imu(np.ones(len(contract.imu.fields), np.float32))
        engine.advance(0.02)
        assert engine.command().shape == (len(contract.outputs),)


@pytest.mark.filterwarnings('ignore::RuntimeWarning')  # numpy's, of overflows
@pytest.mark.parametrize('cell', CELLS)
def test_hostile_entry_is_refused_or_runs(cell, random_policy, tmp_path) -> None:
    policy = random_policy(image=(3, 9, 12), layers=((4, 3, 2, 1), (5, 2, 1, 0)), cell=cell)
    ran = refused = 0
    for trail in places(document_of(policy)):
        for value in HOSTILE:
            document = document_of(policy)
            put(document, trail, copy.deepcopy(value))
            try:
                run(load(write(tmp_path / 'p.safetensors', document, dict(policy.tensors))))
                ran += 1
            except PolicyError:
                refused += 1
    assert ran > 50 and refused > 500


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_several_hostile_entries_are_refused_or_run(random_policy, tmp_path) -> None:
    policy = random_policy(image=(3, 9, 12), layers=((4, 3, 2, 1), (5, 2, 1, 0)))
    rng = random.Random(0)
    all_places = [trail for trail in places(document_of(policy)) if trail[0] != 'provenance']
    for _ in range(1000):
        document = document_of(policy)
        for trail in rng.sample(all_places, 3):
            try:
                put(document, trail, rng.choice(HOSTILE[:18]))
            except (TypeError, KeyError, IndexError):  # what it lay in has gone
                continue
        try:
            run(load(write(tmp_path / 'p.safetensors', document, dict(policy.tensors))))
        except PolicyError:
            pass


def test_small_file_cannot_ask_for_enormous_memory(random_policy, tmp_path) -> None:
    policy = random_policy(image=(3, 9, 12), layers=((1024, 1, 1, 0),))
    document = document_of(policy)
    document['image'] |= {'width': 4096, 'height': 4096}
    with pytest.raises(PolicyError, match='too many'):
        load(write(tmp_path / 'p.safetensors', document, dict(policy.tensors)))


@pytest.mark.parametrize(
    'trail, value, message',
    [
        (('readout',), [0, 16], 'readout'),
        (('readout',), [2**70, 16], 'readout'),
        (('max_step',), 1e-12, 'max_step'),
        (('max_step',), 1e39, 'max_step'),
        (('max_step',), 10**400, 'finite number'),
        (('image', 'scale'), 1e-30, 'scale'),
        (('image', 'crop_bottom'), 0.25000001, 'crop'),
        (('encoder', 'layers'), [], "'encoder.1.weight' is missing"),
        (('encoder', 'layers', 0, 'kernel'), 15, 'does not fit'),
    ],
)
def test_size_out_of_range_is_refused_by_name(
    trail, value, message, random_policy, tmp_path
) -> None:
    policy = random_policy(image=(3, 9, 12), layers=((4, 3, 2, 1), (5, 2, 1, 0)))
    document = document_of(policy)
    put(document, trail, value)
    with pytest.raises(PolicyError, match=message):
        run(load(write(tmp_path / 'p.safetensors', document, dict(policy.tensors))))


@pytest.mark.parametrize('real', ['float', 'double'])
@pytest.mark.parametrize('name', ['gcc', 'clang'])
def test_sources_compile_without_a_warning(name, real, compiler, tmp_path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f'no {name}')
    macros = ['-DLNN_DOUBLE'] if real == 'double' else []
    include = f'-I{sysconfig.get_path("include")}'
    for source in build.MODULE:
        command = [
            name,
            *build.FLAGS,
            '-Werror',
            include,
            *macros,
            '-c',
            SOURCES / source,
            '-o',
        ]
        done = subprocess.run([*command, tmp_path / 'out.o'], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('real', ['float', 'double'])
def test_core_runs_clean_under_the_sanitizers(real, compiler, tmp_path) -> None:
    command = [
        *compiler, '-std=c99', '-D_POSIX_C_SOURCE=200112L', '-O1', '-g', '-Wall', '-Wextra',
        '-Werror', '-fsanitize=address,undefined', '-fno-sanitize-recover=all', f'-I{SOURCES}',
        *(['-DLNN_DOUBLE'] if real == 'double' else []), HERE / 'core_driver.c',
        *(SOURCES / source for source in build.SOURCES), '-lm', '-o', tmp_path / 'driver',
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([tmp_path / 'driver'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    engines, images, scans = (int(word) for word in done.stdout.split() if word.isdigit())
    assert engines > 200 and images > 500 and scans > 500
