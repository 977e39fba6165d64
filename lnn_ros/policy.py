"""A policy file: a network's tensors and the contract of its inputs and outputs.

One .safetensors file: the tensors are the parameters under the names of the torch modules
(`lnn_ros.liquid.policy_network`); the file's metadata holds one JSON document, the contract,
described by the dataclasses below and checked whole on loading; whether the tensors have the sizes
that it asks for is checked by the engine. Nothing in the file is ever executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from lnn_ros.schema import PolicyError, build, require

FORMAT_VERSION = 2
MOST_ACTIVATIONS = 1 << 24  # numbers that one layer of the encoder may hold
IMU_FIELDS = tuple(
    f'{vector}.{axis}' for vector in ('angular_velocity', 'linear_acceleration') for axis in 'xyz'
)
"""Numbers of a sensor_msgs/Imu that a policy may ask for, in the order in which they are read."""


CELLS = {'liquid': ('exact',), 'ltc_neural': ('exact',), 'ltc_synaptic': ('exact', 'fused')}
"""Cells that a policy may have (`lnn_ros.liquid.cells`), and the solvers that run each."""
HOLDS = ('current', 'previous', 'linear')
"""What the input is between two samples: the later one (as in ncps and Edifice), the earlier one
(what a robot does that acts on what it last heard), or an even change from one to the other: of
second order in the interval, it makes a net least dependent on its rate (docs/rates.md)."""


def _require_one(name: str, value: str, known: Iterable[str]) -> None:
    require(value in known, f"{name} is '{value}', must be one of {', '.join(known)}")


@dataclass(frozen=True)
class ImageContract:
    """What the network sees: `width` x `height` area averages of rows [crop_top, crop_bottom).

    Attributes:
        width, height: of the network's view, in pixels.
        channels: 3 (red, green, blue) or 1 (luma).
        crop_top, crop_bottom: rows to keep, as fractions of the source's height.
        mean, scale: a channel in [0, 1] becomes (value - mean) / scale.
        age_scale: the frame's age in seconds, divided by this, is an input too.
    """

    width: int
    height: int
    channels: int
    crop_top: float
    crop_bottom: float
    mean: float
    scale: float
    age_scale: float

    def __post_init__(self) -> None:
        require(1 <= self.width <= 4096 and 1 <= self.height <= 4096, 'size must be 1-4096 pixels')
        require(self.channels in (1, 3), f'channels is {self.channels}, must be 1 or 3')
        require(
            0.0 <= self.crop_top < self.crop_bottom <= 1.0,
            f'crop [{self.crop_top}, {self.crop_bottom}) must lie in [0, 1]',
        )
        require(self.crop_bottom - self.crop_top >= 1e-3, 'crop must be at least 0.001 high')
        require(self.scale > 0.0 and self.age_scale > 0.0, 'scale and age_scale must be positive')
        # bounds within which every pixel and every age stays finite in float32
        require(
            min(self.scale, self.age_scale) >= 1e-6 and abs(self.mean) <= 1e6,
            'scale and age_scale must be at least 1e-6, and mean at most 1e6 in size',
        )


@dataclass(frozen=True)
class ImuContract:
    """Which numbers of an IMU sample are inputs, each as (value - offset) / scale.

    Attributes:
        fields: names out of `IMU_FIELDS`.
        offset, scale: one number per field, in the field's SI unit.
        frame: the axes that the numbers are given in; `base_link` means REP 103 body axes.
    """

    fields: tuple[str, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    frame: str

    def __post_init__(self) -> None:
        unknown = set(self.fields) - set(IMU_FIELDS)
        require(bool(self.fields) and not unknown, f'unknown or no fields: {sorted(unknown)}')
        require(
            len(self.fields) == len(self.offset) == len(self.scale),
            'fields, offset and scale must be equally long',
        )
        require(all(scale > 0.0 for scale in self.scale), 'every scale must be positive')


@dataclass(frozen=True)
class OutputContract:
    """One number that the network commands.

    Attributes:
        name: the field of geometry_msgs/Twist, `linear.x` ... `angular.z`.
        unit: SI unit of all the numbers below.
        min, max: what the network was trained to command; its raw output -1 ... 1 maps onto this.
        slew: largest change, in units per second.
        safe: sent whenever the network's value may not be.
    """

    name: str
    unit: str
    min: float
    max: float
    slew: float
    safe: float

    def __post_init__(self) -> None:
        require(self.min < self.max, f'{self.name}: min {self.min} must be < max {self.max}')
        require(self.min <= self.safe <= self.max, f'{self.name}: safe must lie in [min, max]')
        require(self.slew > 0.0, f'{self.name}: slew must be positive')


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of the encoder, zero-padded, followed by a ReLU."""

    channels: int
    kernel: int
    stride: int
    padding: int

    def __post_init__(self) -> None:
        require(
            1 <= self.channels <= 1024 and 1 <= self.kernel <= 15 and 1 <= self.stride <= 8,
            f'convolution out of range: {self}',
        )
        require(0 <= self.padding < self.kernel, f'padding must be < kernel: {self}')


@dataclass(frozen=True)
class EncoderContract:
    """The image encoder: convolutions, then a linear layer and tanh to `features` numbers."""

    layers: tuple[ConvLayer, ...]
    features: int

    def __post_init__(self) -> None:
        require(1 <= self.features <= 4096, f'features is {self.features}, must be 1-4096')
        require(len(self.layers) <= 8, f'{len(self.layers)} convolutions, must be at most 8')


@dataclass(frozen=True)
class Contract:
    """Everything about a policy but its tensors.

    Attributes:
        cell: form of the liquid cell, one of `CELLS`.
        units: number of the cell's units.
        motor_neurons: how many of them, from the first on, the readout sees; all, but for
            `ltc_synaptic`, whose wiring has motor neurons.
        solver: how an interval is integrated, see `CELLS`.
        max_step, unfolds: longest sub-step of the solver, in seconds, and fewest in an interval.
        hold: what the inputs are over an interval, one of `HOLDS`; its end is the stamp of the
            message that is being taken.
        image, imu, encoder: inputs; image and encoder go together, either input may be absent.
        mapping: sizes of the layers between the inputs and the cell (SiLU between them, the last
            one linear); without any, the cell sees the inputs themselves.
        readout: sizes of the readout's hidden layers (ReLU between them).
        outputs: what is commanded.
        trigger: the stream whose every message brings a command, `imu` or `image`.
        dt_range: smallest and largest interval, in seconds, met in training.
        task: what it was trained for.
        provenance: how it was made, free form.
    """

    cell: str
    units: int
    motor_neurons: int
    solver: str
    max_step: float
    unfolds: int
    hold: str
    image: ImageContract | None
    imu: ImuContract | None
    encoder: EncoderContract | None
    mapping: tuple[int, ...]
    readout: tuple[int, ...]
    outputs: tuple[OutputContract, ...]
    trigger: str
    dt_range: tuple[float, float]
    task: str
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        _require_one('cell', self.cell, CELLS)
        _require_one('solver', self.solver, CELLS[self.cell])
        _require_one('hold', self.hold, HOLDS)
        require(1 <= self.units <= 4096, f'units is {self.units}, must be 1-4096')
        least = 1 if self.cell == 'ltc_synaptic' else self.units
        require(
            least <= self.motor_neurons <= self.units,
            f'motor_neurons is {self.motor_neurons}, must be {least}-{self.units}',
        )
        require(1 <= self.unfolds <= 1000, f'unfolds is {self.unfolds}, must be 1-1000')
        # a step costs dt / max_step sub-steps: a damaged number must not stop the robot's clock
        is_good = 1e-4 <= self.max_step <= 1e6
        require(is_good, f'max_step is {self.max_step} s, must be from 0.0001 to 1e6 s')
        for name in ('mapping', 'readout'):
            sizes = getattr(self, name)
            require(len(sizes) <= 8, f'{len(sizes)} layers of {name}, must be at most 8')
            require(
                all(1 <= size <= 4096 for size in sizes),
                f'{name} is {sizes}, every size must be 1-4096',
            )
        require(bool(self.outputs), 'there must be an output')
        require(len(self.outputs) <= 64, f'{len(self.outputs)} outputs, must be at most 64')
        names = [output.name for output in self.outputs]
        require(len(set(names)) == len(names), f'output names {names} must differ')
        require((self.image is None) == (self.encoder is None), 'image and encoder go together')
        self._check_encoder()
        require(self.trigger in self.streams, f"trigger '{self.trigger}' is not one of the inputs")
        low, high = self.dt_range
        require(0.0 < low <= high, f'dt_range {self.dt_range} must be positive and ascending')

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the sensor streams that the policy needs."""
        return tuple(name for name in ('image', 'imu') if getattr(self, name) is not None)

    @property
    def inputs(self) -> int:
        """Count of the inputs: image features, the image's age, IMU numbers."""
        seen = self.encoder.features + 1 if self.encoder else 0
        return seen + (len(self.imu.fields) if self.imu else 0)

    @property
    def cell_inputs(self) -> int:
        """Count of what the cell sees of them, through the mapping if there is one."""
        return self.mapping[-1] if self.mapping else self.inputs

    @property
    def encoder_shapes(self) -> list[tuple[int, int, int]]:
        """(channels, rows, columns) of the image and after each convolution."""
        assert self.image is not None and self.encoder is not None
        shapes = [(self.image.channels, self.image.height, self.image.width)]
        for layer in self.encoder.layers:
            _, *sides = shapes[-1]
            rows, columns = (
                (side + 2 * layer.padding - layer.kernel) // layer.stride + 1 for side in sides
            )
            shapes.append((layer.channels, rows, columns))
        return shapes

    def _check_encoder(self) -> None:
        """Refuse an encoder whose sizes do not fit, or that a small file makes enormous."""
        if self.encoder is None:
            return
        shapes = self.encoder_shapes
        require(math.prod(shapes[0]) <= MOST_ACTIVATIONS, 'the image has too many pixels')
        for i, layer in enumerate(self.encoder.layers):
            (before, height, width), (channels, rows, columns) = shapes[i], shapes[i + 1]
            k = layer.kernel
            require(
                rows >= 1 and columns >= 1,
                f'encoder.{2 * i}: a {k}x{k} kernel does not fit a {width}x{height} input',
            )
            require(
                max(before * k * k, channels) * rows * columns <= MOST_ACTIVATIONS,
                f'encoder.{2 * i} takes or gives too many numbers, use larger strides',
            )


@dataclass(frozen=True)
class Policy:
    """A contract and the tensors that go with it (name -> float32 array)."""

    contract: Contract
    tensors: Mapping[str, NDArray[np.float32]]

    @property
    def parameters(self) -> int:
        """Count of all trained numbers, encoder and readout included."""
        return sum(tensor.size for tensor in self.tensors.values())


def content_sha256(contract: Any, tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """Return the hex digest over a contract as JSON and all tensors' names, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(contract, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype='<f4')
        digest.update(f'{name}{tensor.shape}'.encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def save(policy: Policy, path: Path) -> None:
    """Write a policy file; the file appears whole or not at all."""
    contract = dataclasses.asdict(policy.contract)
    document = {
        'format_version': FORMAT_VERSION,
        'contract': contract,
        'sha256': content_sha256(contract, policy.tensors),
    }
    tensors = {n: np.ascontiguousarray(t, dtype=np.float32) for n, t in policy.tensors.items()}
    partial = path.with_name(path.name + '.part')
    # not save_file(): the file that it makes can be read by its owner alone
    partial.write_bytes(safetensors.numpy.save(tensors, {'lnn_ros': json.dumps(document)}))
    partial.replace(path)


def load(path: Path) -> Policy:
    """Read and check a policy file.

    Raises:
        PolicyError: says which file and what is wrong with it.
    """
    if path.is_dir():
        raise PolicyError(f'{path}: this is a folder, name a .safetensors policy in it')
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise PolicyError(f'{path}: there is no such file; name a .safetensors policy') from None
    except (
        safetensors.SafetensorError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise PolicyError(f'{path}: not a readable .safetensors file ({error})') from None
    try:
        return _check(metadata, tensors)
    except (PolicyError, RecursionError) as error:  # provenance may be nested as deep as it likes
        raise PolicyError(f'{path}: {error}') from None


def _check(metadata: Mapping[str, str], tensors: dict[str, NDArray[Any]]) -> Policy:
    require('lnn_ros' in metadata, 'a .safetensors file, but not a policy: no lnn_ros metadata')
    try:
        document = json.loads(metadata['lnn_ros'])
    except (ValueError, RecursionError) as error:
        raise PolicyError(f'its metadata is not JSON ({error})') from None
    require(isinstance(document, dict), 'its metadata must be a JSON object')
    version = document.get('format_version')
    require(
        type(version) is int and version == FORMAT_VERSION,
        f'format version {version}, this version of lnn_ros reads {FORMAT_VERSION}: train it again',
    )
    for name, tensor in tensors.items():
        require(tensor.dtype == np.float32, f"tensor '{name}' is {tensor.dtype}, must be float32")
        require(bool(np.isfinite(tensor).all()), f"tensor '{name}' has values that are not finite")
    contract = build(Contract, document.get('contract'), 'contract')
    require(
        document.get('sha256') == content_sha256(document['contract'], tensors),
        'its content does not match its sha256: the file is damaged or was edited',
    )
    return Policy(contract, tensors)
