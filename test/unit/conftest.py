"""What several of the unit tests share: a policy of any shape, a controller, launch files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from lnn_ros.controller import Controller, Settings
from lnn_ros.launch_xml import Plan
from lnn_ros.policy import (
    IMU_FIELDS,
    Contract,
    ConvLayer,
    EncoderContract,
    ImageContract,
    ImuContract,
    OutputContract,
    Policy,
)
from lnn_ros.safety import Mode


@pytest.fixture
def random_policy() -> Callable[..., Policy]:
    return _random_policy


def _random_policy(
    units: int = 32,
    image: tuple[int, int, int] | None = (3, 18, 32),  # channels, height, width
    layers: tuple[tuple[int, int, int, int], ...] = ((8, 3, 2, 1), (16, 3, 2, 1), (16, 3, 2, 1)),
    imu: int = 6,
    mapping: tuple[int, ...] = (20, 12),
    hold: str = 'linear',
    cell: str = 'ltc_neural',
    motors: int | None = None,
    solver: str = 'exact',
    unfolds: int = 1,
    wired: bool = True,
    readout: tuple[int, ...] = (40, 16),
    seed: int = 0,
) -> Policy:
    """Return a policy with random weights; layers are (channels, kernel, stride, padding)."""
    sides = {} if image is None else dict(zip(('channels', 'height', 'width'), image, strict=True))
    contract = Contract(
        cell=cell,
        units=units,
        motor_neurons=motors or units,
        solver=solver,
        max_step=0.05,
        unfolds=unfolds,
        hold=hold,
        image=ImageContract(
            **sides, crop_top=0.25, crop_bottom=1.0, mean=0.45, scale=0.25, age_scale=0.25
        )
        if image
        else None,
        imu=ImuContract(IMU_FIELDS[:imu], (0.1,) * imu, (3.0,) * imu, 'base_link') if imu else None,
        encoder=EncoderContract(tuple(ConvLayer(*layer) for layer in layers), 24)
        if image
        else None,
        mapping=mapping,
        readout=readout,
        outputs=(
            OutputContract('linear.x', 'm/s', 0.0, 2.0, 4.0, 0.0),
            OutputContract('angular.z', 'rad/s', -3.0, 3.0, 20.0, 0.0),
        ),
        trigger='imu' if imu else 'image',
        dt_range=(0.001, 0.1),
        task='car',
        provenance={},
    )
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 4.0
        tensors[name] = (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)

    inputs = contract.inputs
    if contract.encoder:
        shapes = contract.encoder_shapes
        for i, layer in enumerate(contract.encoder.layers):
            add(f'encoder.{2 * i}.weight', layer.channels, shapes[i][0], layer.kernel, layer.kernel)
            add(f'encoder.{2 * i}.bias', layer.channels)
        last = 2 * len(contract.encoder.layers) + 1
        add(f'encoder.{last}.weight', 24, int(np.prod(shapes[-1])))
        add(f'encoder.{last}.bias', 24)
    seen = contract.cell_inputs
    shapes = {
        'ltc_neural': {'gate_input': (units, seen), 'drive': (units, seen)}
        | {'gate_recurrent': (units, units)}
        | dict.fromkeys(('gate_bias', 'log_gain', 'reversal', 'leak'), (units,)),
        'ltc_synaptic': dict.fromkeys(('raw_gl', 'vl', 'raw_cm'), (units,))
        | dict.fromkeys(('input_w', 'input_b'), (seen,))
        | dict.fromkeys(('output_w', 'output_b'), (contract.motor_neurons,)),
        'liquid': {'tau.weight': (units, seen), 'tau.bias': (units,)}
        | {'hidden.weight': (2 * units, seen), 'hidden.bias': (2 * units,)}
        | {'out.weight': (units, 2 * units), 'out.bias': (units,)},
    }
    for name, shape in shapes[cell].items():
        add(f'cell.{name}', *shape)
    if cell == 'ltc_neural':
        tensors['cell.log_tau'] = np.log(rng.uniform(0.02, 2.0, units)).astype(np.float32)
    elif cell == 'ltc_synaptic':
        for kind, sources in (('synapses', units), ('sensory', seen)):
            adjacency = rng.choice([0, 0, 1, -1], (sources, units)).astype(np.float32)
            adjacency *= wired
            tensors[f'cell.{kind}.adjacency'] = adjacency
            for name in ('raw_w', 'sigma', 'mu', 'erev'):
                add(f'cell.{kind}.{name}', np.count_nonzero(adjacency))
    read = contract.motor_neurons
    stacks = {'mapping': (inputs, *mapping), 'readout': (read + inputs, *readout, 2)}
    for name, sizes in stacks.items():
        for i in range(len(sizes) - 1):
            add(f'{name}.{2 * i}.weight', sizes[i + 1], sizes[i])
            add(f'{name}.{2 * i}.bias', sizes[i + 1])
    return Policy(contract, tensors)


# a controller -------------------------------------------------------------------------------------

_T0 = 1_763_800_000_000_000_000
_MS = 1_000_000
_LEVEL = (0.0, 0.0, 9.81)


class _Drive:
    """A controller, told messages by their stamps in milliseconds after 1_763_800_000 s."""

    def __init__(self, policy, engine=None, **settings):
        self.policy = policy
        self.controller = Controller(policy, Settings(**settings), engine)

    def imu(self, ms, turn=None, stamp_ns=None):
        """Tell an IMU sample; return (values, mode) of its command, or None."""
        turn = np.sin(ms / 30.0) if turn is None else turn
        stamp_ns = _T0 + round(ms * _MS) if stamp_ns is None else stamp_ns
        return self._plain(self.controller.on_imu((0.1, -0.2, turn), _LEVEL, stamp_ns), stamp_ns)

    def image(self, ms, seed=None, stamp_ns=None):
        """Tell a frame of noise; return (values, mode) of its command, or None."""
        stamp_ns = _T0 + round(ms * _MS) if stamp_ns is None else stamp_ns
        rng = np.random.default_rng(stamp_ns if seed is None else seed)
        frame = (rng.integers(0, 256, (12, 16, 3)) * rng.random()).astype(np.uint8)
        command = self.controller.on_image(frame, 12, 16, 'rgb8', 48, stamp_ns)
        return self._plain(command, stamp_ns)

    @staticmethod
    def _plain(command, stamp_ns):
        if command is None:
            return None
        assert command.stamp_ns == stamp_ns
        return tuple(command.values.tolist()), command.mode

    @property
    def state(self):
        return self.controller.engine.state.tobytes()

    @property
    def counts(self):
        return dict(self.controller.counts)

    def start(self):
        """Bring image and IMU to 60 ms, past the warm-up."""
        self.image(0)
        for ms in range(0, 61, 10):
            last = self.imu(ms)
        self.image(60)
        assert last[1] is Mode.RUNNING
        return self

    def go_on(self, ms, n=30):
        """Tell an ordinary stretch of messages from `ms` on; return all their commands."""
        commands = []
        for i in range(n):
            if i % 3 == 0:
                commands.append(self.image(ms + 10 * i - 1))
            commands.append(self.imu(ms + 10 * i))
        return commands


@pytest.fixture(scope='session')
def new_drive() -> type[_Drive]:
    return _Drive


# launch files -------------------------------------------------------------------------------------


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package called fake and point the environment at it."""
    prefix = tmp_path / 'prefix'
    (prefix / 'share/fake').mkdir(parents=True)
    _install(prefix, 'node', 'exit 0')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(prefix))
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    monkeypatch.setenv('SET', 'from outside')
    monkeypatch.delenv('UNSET', raising=False)
    return prefix


def _install(prefix: Path, name: str, script: str, package: str = 'fake') -> None:
    file = prefix / 'lib' / package / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'#!/bin/sh\n{script}\n')
    file.chmod(0o755)


@pytest.fixture
def install(prefix: Path) -> Callable[..., None]:
    """Return a function that puts a shell script into a package: `install('node', 'exit 0')`."""
    return partial(_install, prefix)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a launch file with this body."""

    def write(body: str, name: str = 'test.launch.xml') -> Path:
        file = tmp_path / name
        file.write_text(f'<launch>\n{body}\n</launch>\n')
        return file

    return write


@pytest.fixture
def said() -> list[tuple[str, str, str]]:
    return []


@pytest.fixture
def plan(
    prefix: Path, write: Callable[..., Path], said: list[tuple[str, str, str]], tmp_path: Path
) -> Callable[..., Plan]:
    def plan(body: str, **arguments: str) -> Plan:
        scratch = tmp_path / 'scratch'
        scratch.mkdir(exist_ok=True)
        return Plan(write(body), arguments, scratch, lambda *event: said.append(event))

    return plan


@pytest.fixture
def parameter_files() -> Callable[..., list[dict]]:
    """Return a function that reads the parameter files of a planned process."""

    def parameter_files(plan: Plan, index: int = 0) -> list[dict]:
        command = plan.processes[index].command
        files = [command[i + 1] for i, word in enumerate(command) if word == '--params-file']
        return [yaml.safe_load(Path(file).read_text()) for file in files]

    return parameter_files
