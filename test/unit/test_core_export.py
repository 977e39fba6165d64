from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lnn_ros.controller import Controller, Settings
from lnn_ros.core.export import WEIGHTS, export_c
from lnn_ros.core.numpy_engine import NumpyEngine
from lnn_ros.policy import IMU_FIELDS, Policy
from lnn_ros.safety import Mode
from lnn_ros.schema import PolicyError

STRICT = ['-std=c99', '-pedantic', '-O2', '-Wall', '-Wextra', '-Werror', '-fPIC']
SHAPES = {
    'car': {},
    'imu_only': {'image': None, 'units': 19, 'imu': 3, 'readout': (7, 9, 4), 'hold': 'previous'},
    'linear': {'image': None, 'units': 1, 'mapping': (), 'readout': ()},
    'mono_vision_only': {'image': (1, 11, 13), 'layers': ((5, 5, 3, 4), (3, 2, 1, 0)), 'imu': 0},
    'ncp': {'cell': 'ltc_synaptic', 'units': 19, 'motors': 4, 'imu': 3, 'image': None},
    'fused': {
        **{'cell': 'ltc_synaptic', 'solver': 'fused', 'unfolds': 6, 'hold': 'current'},
        **{'units': 7, 'image': (3, 4, 5), 'layers': ()},
    },
    'liquid': {'cell': 'liquid', 'image': None, 'units': 9},
    'no_synapses': {'cell': 'ltc_synaptic', 'units': 5, 'motors': 2, 'image': None, 'wired': False},
    'held_ncp': {
        **{'cell': 'ltc_synaptic', 'units': 9, 'motors': 2, 'image': None, 'mapping': ()},
        **{'hold': 'previous', 'unfolds': 3},
    },
    'liquid_held': {'cell': 'liquid', 'image': None, 'units': 9, 'hold': 'previous'},
    'no_convolution': {'image': (3, 4, 5), 'layers': (), 'mapping': (70,), 'hold': 'current'},
}


class Exported:
    """The C policy, compiled for this machine and called through ctypes."""

    def __init__(self, compiler: list[str], folder: Path, policy: Policy, weights: str) -> None:
        header, source = export_c(policy, folder, 'robot', weights)
        shim = folder / 'shim.c'
        shim.write_text(f'#include "{header.name}"\nint size(void) {{ return sizeof(robot); }}\n')
        library = folder / 'robot.so'
        subprocess.run([*compiler, *STRICT, '-shared', source, shim, '-o', library], check=True)
        self.symbols = subprocess.run(
            ['nm', '-D', '--undefined-only', library], check=True, capture_output=True, text=True
        ).stdout
        self._lib = ctypes.CDLL(str(library))
        self.size = self._lib.size()
        self._memory = ctypes.create_string_buffer(b'\xff' * self.size, self.size)
        self._outputs = (ctypes.c_float * len(policy.contract.outputs))()
        self._lib.robot_init(self._memory)

    def call(self, name: str, *arguments: object) -> int:
        return getattr(self._lib, f'robot_{name}')(self._memory, *arguments)

    def hold_imu(self, sample: np.ndarray) -> int:
        return self.call('hold_imu', np.ascontiguousarray(sample, np.float32).ctypes)

    def hold_image(self, pixels: np.ndarray) -> None:
        self.call('hold_image', np.ascontiguousarray(pixels, np.uint8).ctypes)

    def advance(self, dt: float) -> int:
        return self.call('advance', ctypes.c_float(dt))

    def state(self, units: int) -> np.ndarray:
        return np.frombuffer(self._memory, np.float32, units).copy()  # the struct's first

    def command(self) -> np.ndarray:
        assert self.call('command', self._outputs) == 1
        return np.array(self._outputs)


@pytest.fixture
def export(compiler: list[str], tmp_path: Path) -> Callable[..., Exported]:
    return partial(Exported, compiler, tmp_path)


def largest_difference(policy: Policy, exported: Exported, steps: int) -> float:
    """Drive the export and the engine with the same messages; return how far commands differ."""
    contract, engine = policy.contract, NumpyEngine(policy)
    rng = np.random.default_rng(0)
    low, high = (np.array([getattr(o, e) for o in contract.outputs]) for e in ('min', 'max'))
    worst = 0.0
    for k in range(steps):
        dt = float(np.float32(10 ** rng.uniform(-3, -0.5)))
        if contract.image and k % 10 == 0:
            image = contract.image
            shape = (image.height, image.width, image.channels)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            seen = (pixels.transpose(2, 0, 1) / 255.0 - image.mean) / image.scale
            engine.hold_image(np.ascontiguousarray(seen, np.float32))
            exported.hold_image(pixels)
        if contract.image:
            age = float(rng.uniform(0.0, 0.2))
            engine.hold_image_age(age)
            assert exported.call('hold_image_age', ctypes.c_float(age)) == 1
        if contract.imu:
            sample = rng.normal(size=6).astype(np.float32) * 3.0
            fields = [IMU_FIELDS.index(field) for field in contract.imu.fields]
            scaled = (sample[fields] - contract.imu.offset) / contract.imu.scale
            engine.hold_imu(scaled.astype(np.float32))
            assert exported.hold_imu(sample) == 1
        if k % 7 == 3:  # as a late message
            engine.jump()
            exported.call('jump')
        else:
            engine.advance(dt)
            assert exported.advance(dt) == 1
        if k == 20:
            engine.reset()
            exported.call('reset')
        expected = np.clip(engine.command(), low, high)
        worst = max(worst, float(np.abs(exported.command() - expected).max()))
    return worst


@pytest.mark.parametrize('shape', SHAPES)
def test_exported_policy_equals_the_engine(shape, random_policy, export) -> None:
    policy = random_policy(**SHAPES[shape])
    assert largest_difference(policy, export(policy, 'float32'), 300) < 1e-5


@pytest.mark.parametrize('shape', SHAPES)
def test_policy_with_int8_weights_stays_near_the_engine(shape, random_policy, export) -> None:
    policy = random_policy(**SHAPES[shape])
    # of ranges of 2 and 6; random weights, so an unlucky readout costs more than a trained one
    assert largest_difference(policy, export(policy, 'int8'), 300) < 0.25


@pytest.mark.parametrize('solver', ['exact', 'fused'])
def test_state_of_an_int8_policy_stays_among_the_potentials_that_pull_at_it(
    solver, random_policy, export
) -> None:
    policy = random_policy(
        cell='ltc_synaptic', solver=solver, image=None, units=6, motors=2, hold='current'
    )
    tensors = dict(policy.tensors)
    for kind in ('synapses', 'sensory'):
        _, target = tensors[f'cell.{kind}.adjacency'].nonzero()
        # below half an int8 step of the other neurons' conductances, but pulling hard
        w = np.where(target == 0, 0.0035, 1.0)
        tensors[f'cell.{kind}.raw_w'] = np.log(np.expm1(w)).astype(np.float32)
        tensors[f'cell.{kind}.erev'] = np.where(target == 0, -2.0, 1.0).astype(np.float32)
    tensors['cell.raw_gl'] = np.full(6, -12.0, np.float32)
    tensors['cell.vl'] = np.zeros(6, np.float32)
    policy = Policy(policy.contract, tensors)
    exported = export(policy, 'int8')
    rng = np.random.default_rng(0)
    lowest = 0.0
    for _ in range(1000):
        exported.hold_imu(rng.normal(size=6) * 3.0)
        exported.advance(1.0)
        state = exported.state(6)
        assert np.abs(state).max() <= 2.0 + 1e-5
        lowest = min(lowest, state[0])
    assert lowest < -1.5  # a weak neuron is alive


def test_number_that_no_float_holds_is_refused(random_policy, tmp_path) -> None:
    policy = random_policy()
    outputs = tuple(replace(o, max=1e39) for o in policy.contract.outputs)
    contract = replace(policy.contract, outputs=outputs)
    with pytest.raises(PolicyError, match='no C float'):
        export_c(Policy(contract, policy.tensors), tmp_path, 'robot')


@pytest.mark.parametrize('weights', WEIGHTS)
def test_exported_source_needs_no_library(weights, random_policy, export) -> None:
    symbols = export(random_policy(), weights).symbols
    needed = {line.split()[-1].split('@')[0] for line in symbols.splitlines()}
    weak = {'__gmon_start__', '_ITM_deregisterTMCloneTable', '_ITM_registerTMCloneTable'}
    assert needed - weak - {'__cxa_finalize', 'memcpy', 'memset'} == set()


def test_exported_policy_refuses_what_makes_no_sense_and_keeps_its_state(
    random_policy, export
) -> None:
    exported = export(random_policy(), 'float32')
    exported.hold_imu(np.ones(6))
    exported.advance(0.02)
    before = exported.command()
    for dt in (0.0, -0.1, math.nan, math.inf, -math.inf, 1e9):
        assert exported.advance(dt) == 0
    for bad in (math.nan, math.inf, -math.inf):
        assert exported.hold_imu(np.array([0, 0, 0, 0, 0, bad])) == 0
        assert exported.call('hold_image_age', ctypes.c_float(bad)) == 0
    assert (exported.command() == before).all()


def test_words_of_a_policy_cannot_become_code(random_policy, export, tmp_path) -> None:
    policy = random_policy()
    evil = '*/ int evil; /* \n#error \\ ?'
    outputs = tuple(replace(o, name=f'{o.name}{evil}', unit=evil) for o in policy.contract.outputs)
    imu = replace(policy.contract.imu, frame=evil)
    contract = replace(policy.contract, outputs=outputs, imu=imu)
    export(Policy(contract, policy.tensors), 'float32')
    assert 'int evil;' not in (tmp_path / 'robot.h').read_text()


@pytest.mark.parametrize(
    'name',
    ['', '1car', 'car-1', 'a b', '../car', '_car', 'int', 'real', 'lnn_exp', 'int8_t', 'memcpy'],
)
def test_name_that_is_no_c_identifier_is_refused(name, random_policy, tmp_path) -> None:
    with pytest.raises(ValueError, match='C identifier'):
        export_c(random_policy(), tmp_path, name)


def test_unknown_weights_are_refused(random_policy, tmp_path) -> None:
    with pytest.raises(ValueError, match='float32, int8'):
        export_c(random_policy(), tmp_path, 'robot', 'int4')


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('name', ['gcc', 'clang'])
def test_source_compiles_without_a_warning(shape, name, random_policy, tmp_path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f'no {name}')
    for weights in WEIGHTS:
        _, source = export_c(random_policy(**SHAPES[shape]), tmp_path, 'robot', weights)
        command = [name, *STRICT, '-Wconversion', '-c', source, '-o', tmp_path / 'robot.o']
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_sample_too_large_once_scaled_is_refused_and_the_next_one_is_good(
    random_policy, export
) -> None:
    policy = random_policy(**SHAPES['imu_only'])
    imu = replace(policy.contract.imu, scale=(1e-3,) * 3)
    exported = export(
        policy=Policy(replace(policy.contract, imu=imu), policy.tensors), weights='float32'
    )
    assert exported.hold_imu(np.full(6, 1e37)) == 0
    assert exported.hold_imu(np.ones(6)) == 1 and exported.advance(0.01) == 1
    assert np.isfinite(exported.command()).all()


LOOP = """
static float sent[car_OUTPUTS];
static int is_safe;
static void send(const float *command)
{
    is_safe = 0;
    for (int i = 0; i < car_OUTPUTS; i++)
        sent[i] = command[i];
}
static void send_safe_command(void) { is_safe = 1; }
#include "example.c"
const float *start(void) { car_init(&policy); return sent; }
int step(const float *sample, uint32_t stamp_us) { on_imu(sample, stamp_us); return is_safe; }
"""


def test_loop_in_the_documentation_drives_as_the_controller_does(
    random_policy, compiler, tmp_path
) -> None:
    page = (Path(__file__).parents[2] / 'docs' / 'microcontroller.md').read_text()
    (example,) = re.findall(
        r'^    #include <stdint.h>\n(?:    .*\n|\n)*?    }\n\n(?=\S)', page, re.M
    )
    (tmp_path / 'example.c').write_text(textwrap.dedent(example))
    policy = random_policy(image=(3, 9, 12), layers=((4, 3, 2, 1), (5, 2, 1, 0)))
    contract = policy.contract
    contract = replace(
        contract,
        image=replace(contract.image, crop_top=0.0),
        outputs=tuple(replace(output, slew=1e9) for output in contract.outputs),
    )
    policy = Policy(contract, policy.tensors)
    _, source = export_c(policy, tmp_path, 'car', 'float32')
    (tmp_path / 'loop.c').write_text('#include "car.h"\n#include <stdint.h>\n' + LOOP)
    library = tmp_path / 'loop.so'
    sources = [source, tmp_path / 'loop.c']
    subprocess.run([*compiler, *STRICT, '-shared', *sources, '-o', library], check=True)
    loop = ctypes.CDLL(str(library))
    loop.start.restype = ctypes.POINTER(ctypes.c_float)
    sent = loop.start()

    ages = {'image': 1.0, 'imu': 0.2}
    controller = Controller(policy, Settings(max_gap=0.5, max_age=ages, warmup_steps=5))
    rng = np.random.default_rng(0)
    stamp_us, frames_until, modes = 2**32 - 2_000_000, 0, []  # the clock wraps on the way
    for k in range(1500):
        gap = k in (400, 900)
        stamp_us += 700_000 if gap else int(rng.integers(1_000, 30_000))
        if rng.random() < 0.3 and not 600 < k < 750:  # a second and more without a frame
            behind = int(rng.choice([-500, 0, 900]))  # ahead of the sample, with it, behind it
            frame_us = max(stamp_us - behind, frames_until + 1)
            frames_until = frame_us
            pixels = rng.integers(0, 256, 9 * 12 * 3, dtype=np.uint8)
            loop.on_frame(pixels.ctypes, ctypes.c_uint32(frame_us % 2**32))
            controller.on_image(pixels.tobytes(), 9, 12, 'rgb8', 36, frame_us * 1000)
            stamp_us = max(stamp_us, frame_us - 500)
        sample = rng.normal(size=6).astype(np.float32)
        is_safe = loop.step(sample.ctypes, ctypes.c_uint32(stamp_us % 2**32))
        command = controller.on_imu(sample[:3].tolist(), sample[3:].tolist(), stamp_us * 1000)
        assert is_safe == (command.mode is not Mode.RUNNING), (k, command.mode)
        if not is_safe:
            np.testing.assert_allclose(sent[0:2], command.values, atol=3e-5)
        modes.append(command.mode)
    assert set(modes) == {Mode.WAITING, Mode.WARMUP, Mode.RUNNING, Mode.STALE}
    assert modes.count(Mode.RUNNING) > 1000
