"""What every test stands on: the installed package, a ROS domain of its own, small policies."""

import os
import shlex
import shutil
import sys
from pathlib import Path

# `colcon test` and `python -m pytest` put the checkout first on sys.path, where its lnn_ros would
# hide the installed one and its folder launch/ would pass for ROS's package.
_root = Path(__file__).resolve().parents[1]
sys.path[:] = [p for p in sys.path if Path(p).resolve() != _root]

# Before anything imports rclpy. The user's own domain is avoided, not respected: a robot may listen
# there, and these tests publish commands. 1-101 are the domains whose ports are free on any OS.
_domains = [d for d in range(1, 102) if str(d) != os.environ.get('ROS_DOMAIN_ID')]
os.environ['ROS_DOMAIN_ID'] = str(_domains[os.getpid() % len(_domains)])
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ.pop('ROS_STATIC_PEERS', None)  # LOCALHOST would still reach these

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from lnn_ros.core.compiled import CEngine  # noqa: E402
from lnn_ros.core.numpy_engine import NumpyEngine  # noqa: E402
from lnn_ros.policy import IMU_FIELDS, Contract, Policy  # noqa: E402
from lnn_ros.schema import build  # noqa: E402


def _contract(streams, trigger, channels=3, **changes):
    """Return a small contract of `streams`; `changes` replace entries of the document."""
    image = {
        'width': 8,
        'height': 6,
        'channels': channels,
        'crop_top': 0.25,
        'crop_bottom': 1.0,
        'mean': 0.4,
        'scale': 0.25,
        'age_scale': 0.25,
    }
    imu = {
        'fields': list(IMU_FIELDS),
        'offset': [0.0, 0.0, 0.0, 0.0, 0.0, 9.81],
        'scale': [1.0, 1.0, 1.0, 3.0, 3.0, 3.0],
        'frame': 'base_link',
    }
    encoder = {
        'layers': [
            {'channels': 4, 'kernel': 3, 'stride': 2, 'padding': 1},
            {'channels': 5, 'kernel': 2, 'stride': 1, 'padding': 0},
        ],
        'features': 5,
    }
    document = {
        'cell': 'ltc_neural',
        'units': 7,
        'motor_neurons': 7,
        'solver': 'exact',
        'max_step': 0.05,
        'unfolds': 1,
        'hold': 'linear',
        'image': image if 'image' in streams else None,
        'imu': imu if 'imu' in streams else None,
        'encoder': encoder if 'image' in streams else None,
        'mapping': [5, 4],
        'readout': [6],
        'outputs': [
            {'name': 'linear.x', 'unit': 'm/s', 'min': 0.0, 'max': 2.0, 'slew': 4.0, 'safe': 0.1},
            {
                'name': 'angular.z',
                'unit': 'rad/s',
                'min': -3.0,
                'max': 3.0,
                'slew': 20.0,
                'safe': -0.2,
            },
        ],
        'trigger': trigger,
        'dt_range': [0.001, 0.1],
        'task': 'test',
        'provenance': {},
    }
    return build(Contract, {**document, **changes}, 'contract')


def _shapes(contract):
    """Return the tensors that a policy file of `contract` holds, name -> shape."""
    units, inputs = contract.units, contract.inputs
    shapes = {f'cell.{name}': (units,) for name in ('gate_bias', 'log_gain', 'reversal', 'leak')}
    shapes['cell.log_tau'] = (units,)
    shapes['cell.gate_input'] = shapes['cell.drive'] = (units, contract.cell_inputs)
    shapes['cell.gate_recurrent'] = (units, units)
    if contract.encoder:
        channels, height, width = contract.image.channels, 6, 8
        for i, layer in enumerate(contract.encoder.layers):
            shapes[f'encoder.{2 * i}.weight'] = (
                layer.channels,
                channels,
                layer.kernel,
                layer.kernel,
            )
            shapes[f'encoder.{2 * i}.bias'] = (layer.channels,)
            channels = layer.channels
            height = (height + 2 * layer.padding - layer.kernel) // layer.stride + 1
            width = (width + 2 * layer.padding - layer.kernel) // layer.stride + 1
        last = f'encoder.{2 * len(contract.encoder.layers) + 1}'
        shapes[f'{last}.weight'] = (contract.encoder.features, channels * height * width)
        shapes[f'{last}.bias'] = (contract.encoder.features,)
    stacks = {
        'mapping': (inputs, *contract.mapping),
        'readout': (units + inputs, *contract.readout, len(contract.outputs)),
    }
    for name, sizes in stacks.items():
        for i, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            shapes[f'{name}.{2 * i}.weight'] = (after, before)
            shapes[f'{name}.{2 * i}.bias'] = (after,)
    return shapes


def _policy(contract, seed=0):
    """Return a policy of random weights that reacts visibly to all of its inputs."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in _shapes(contract).items():
        spread = 1.0 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.5
        tensors[name] = (rng.standard_normal(shape) * spread).astype(np.float32)
    tensors['cell.log_tau'] = rng.uniform(-4.0, 0.7, contract.units).astype(np.float32)
    return Policy(contract, tensors)


@pytest.fixture(scope='session')
def make_contract():
    return _contract


@pytest.fixture(scope='session')
def make_policy():
    return _policy


# with and without C -------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def compiler():
    """Return the C compiler as the words of a command."""
    words = shlex.split(os.environ.get('CC', 'cc'))
    if shutil.which(words[0]) is None:
        pytest.skip(f'no C compiler ({words[0]})')
    return words


@pytest.fixture(scope='session')
def module():
    """Return the compiled core; `make test` sees to it that it is there unless CORE=numpy."""
    reason = 'the compiled core is not installed'
    return pytest.importorskip('lnn_ros.core._core', reason=reason)


@pytest.fixture(params=['numpy', 'c'])
def new_engine(request):
    """Return what makes an engine for a policy: each kind in its turn."""
    if request.param == 'numpy':
        return NumpyEngine
    module = request.getfixturevalue('module')
    return lambda policy: CEngine(policy, module)
