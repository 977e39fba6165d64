"""The policy step in numpy: every array is made once, at set-up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnn_ros.core.numpy_cells import make_cell
from lnn_ros.core.tensors import Tensors, take_cell
from lnn_ros.policy import Contract, ConvLayer, Policy

F32 = NDArray[np.float32]
Shape = tuple[int, int, int]  # channels, rows, columns


MOST_SUB_STEPS = 1_000_000  # more would hang the caller


def interval_error(dt: float, max_step: float) -> ValueError:
    """Return what is wrong with a `dt` that an engine refuses."""
    if dt > 0.0 and math.isfinite(dt):
        return ValueError(f'dt is {dt} s, more than {MOST_SUB_STEPS} sub-steps of {max_step} s')
    return ValueError(f'dt is {dt} s, but an interval must be finite and greater than 0 s')


def sub_steps(dt: float, max_step: float, unfolds: int = 1) -> int:
    """Return how many equal sub-steps of at most `max_step`, and at least `unfolds`, make up `dt`.

    The margin keeps a dt of a whole number of steps at that number in float32 and float64 alike.

    Raises:
        ValueError: when `dt` is not finite, not greater than 0, or has too many sub-steps.
    """
    count = dt / max_step * (1.0 - 1e-6)
    if not (dt > 0.0 and count <= MOST_SUB_STEPS):
        raise interval_error(dt, max_step)
    return max(math.ceil(count), unfolds)


def check_input(array: Any, shape: tuple[int, ...] | None, name: str, real: Any) -> None:
    """Raise ValueError unless `array` is what the policy takes as input `name`."""
    if shape is None:
        raise ValueError(f'this policy takes no {name}')
    kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
    if kind != real:
        raise ValueError(f'{name} is {kind}, the policy takes {real}')
    if array.shape != shape:
        raise ValueError(f'{name} has shape {array.shape}, the policy takes {shape}')


class NumpyEngine:
    """Runs a policy with numpy alone; see `lnn_ros.core.Engine` for the methods' meaning."""

    def __init__(self, policy: Policy) -> None:
        contract = policy.contract
        tensors = Tensors(policy)
        units, inputs, motors = contract.units, contract.inputs, contract.motor_neurons
        self._encoder = _Encoder(contract, tensors) if contract.encoder else None

        self._mapping = _layers(tensors, 'mapping', (inputs, *contract.mapping))
        self._tanh = np.empty(max(contract.mapping, default=0), dtype=np.float32)
        arrays = take_cell(contract, tensors)
        self._cell = make_cell(contract, arrays)
        self._max_step, self._unfolds = contract.max_step, contract.unfolds

        self.state = np.zeros(units, dtype=np.float32)
        self._joint = np.zeros(motors + inputs, dtype=np.float32)  # [what is read, held inputs]
        self._read, self._inputs = self._joint[:motors], self._joint[motors:]
        is_mapped = 'output_w' in arrays
        self._read_map = (arrays['output_w'], arrays['output_b']) if is_mapped else None
        features = contract.encoder.features if contract.encoder else 0
        self._features = self._inputs[:features]
        self._imu = self._inputs[features + 1 :] if features else self._inputs
        self._age_index = features
        image = contract.image
        self._image_shape = (image.channels, image.height, image.width) if image else None
        self._imu_shape = self._imu.shape if contract.imu else None
        self._age_scale = contract.image.age_scale if contract.image else 1.0
        # what the inputs drive in the cell: at the start of the interval that is to come, at its
        # end, and in the middle of a sub-step
        self._start, self._end, self._driven = np.zeros((3, self._cell.driven), dtype=np.float32)
        self._changed, self._has_start = True, False
        self._hold = contract.hold
        self._is_solved = contract.cell == 'liquid' and contract.hold != 'linear'

        sizes = (motors + inputs, *contract.readout, len(contract.outputs))
        self._readout = _layers(tensors, 'readout', sizes)
        low = np.array([output.min for output in contract.outputs])
        high = np.array([output.max for output in contract.outputs])
        self._middle = ((high + low) / 2).astype(np.float32)
        self._half = ((high - low) / 2).astype(np.float32)
        tensors.refuse_leftovers()

    def reset(self) -> None:
        self.state[:] = 0.0
        self._has_start = False

    def hold_image(self, pixels: F32) -> None:
        check_input(pixels, self._image_shape, 'image', np.dtype(np.float32))
        if not np.isfinite(pixels).all():
            raise ValueError('the image has values that are not finite, it is ignored')
        assert self._encoder is not None
        self._encoder.run(pixels, self._features)
        self._changed = True

    def hold_image_age(self, age: float) -> None:
        if self._encoder is None:
            raise ValueError('this policy takes no image')
        if not math.isfinite(np.float32(age / self._age_scale)):
            raise ValueError(f'the image is {age} s old, but an age must be finite')
        self._inputs[self._age_index] = age / self._age_scale
        self._changed = True

    def hold_imu(self, values: F32) -> None:
        check_input(values, self._imu_shape, 'imu', np.dtype(np.float32))
        if not np.isfinite(values).all():
            raise ValueError(f'imu is {values}, but every value must be finite')
        self._imu[:] = values
        self._changed = True

    def jump(self) -> None:
        self._drive()
        self._settle()

    def _drive(self) -> None:
        """Compute what the held inputs drive at the end of the interval."""
        if not self._changed:
            np.copyto(self._end, self._start)
            return
        value, last = self._inputs, len(self._mapping) - 1
        for i, (weight, bias, out) in enumerate(self._mapping):
            np.matmul(weight, value, out=out)
            out += bias
            if i < last:  # SiLU, as tanh like the gate below
                out *= 0.5
                work = np.tanh(out, out=self._tanh[: out.size])
                work *= out
                out += work
            value = out
        self._cell.drive(value, self._end)

    def _settle(self) -> None:
        """Let the next interval begin with the held inputs."""
        self._start, self._end = self._end, self._start
        self._changed, self._has_start = False, True

    def advance(self, dt: float) -> None:
        steps = sub_steps(dt, self._max_step, self._unfolds)
        if self._is_solved:  # one step is the solution
            steps = 1
        self._drive()
        start, end = self._start if self._has_start else self._end, self._end
        driven = start if self._hold == 'previous' else end
        for k in range(steps):
            if self._hold == 'linear':
                driven = self._driven
                np.subtract(end, start, out=driven)
                driven *= np.float32((k + 0.5) / steps)
                driven += start
            if k == 0 or self._hold == 'linear':
                self._cell.take(driven)
            self._cell.step(self.state, dt / steps)
        self._settle()

    def command(self) -> F32:
        np.copyto(self._read, self.state[: self._read.size])
        if self._read_map:
            self._read *= self._read_map[0]
            self._read += self._read_map[1]
        value = self._joint
        last = len(self._readout) - 1
        for i, (weight, bias, out) in enumerate(self._readout):
            np.matmul(weight, value, out=out)
            out += bias
            if i < last:
                np.maximum(out, 0.0, out=out)
            value = out
        value *= self._half
        value += self._middle
        if not np.isfinite(self.state).all():  # which might not reach it, through a ReLU
            value[:] = np.nan
        return value


def _layers(tensors: Tensors, name: str, sizes: tuple[int, ...]) -> list[tuple[F32, F32, F32]]:
    """Return (weight, bias, room for the result) of each linear layer of a stack."""
    stack = tensors.take_stack(name, sizes)
    return [(weight, bias, np.empty_like(bias)) for weight, bias in stack]


class _Encoder:
    """Convolutions with ReLU as gather + matrix product, then linear and tanh."""

    def __init__(self, contract: Contract, tensors: Tensors) -> None:
        assert contract.encoder is not None
        shapes = contract.encoder_shapes
        self._layers = [
            _Convolution(layer, shapes[i], shapes[i + 1], f'encoder.{2 * i}', tensors)
            for i, layer in enumerate(contract.encoder.layers)
        ]
        index = 2 * len(self._layers) + 1  # a Flatten stands between
        features = contract.encoder.features
        self._weight = tensors.take(f'encoder.{index}.weight', features, math.prod(shapes[-1]))
        self._bias = tensors.take(f'encoder.{index}.bias', features)

    def run(self, pixels: F32, features: F32) -> None:
        for layer in self._layers:
            pixels = layer.run(pixels)
        np.matmul(self._weight, pixels.reshape(-1), out=features)
        features += self._bias
        np.tanh(features, out=features)


class _Convolution:
    def __init__(
        self, layer: ConvLayer, shape: Shape, out: Shape, name: str, tensors: Tensors
    ) -> None:
        channels, height, width = shape
        _, rows, columns = out
        k, stride, pad = layer.kernel, layer.stride, layer.padding
        weight = tensors.take(f'{name}.weight', layer.channels, channels, k, k)
        self._weight = weight.reshape(layer.channels, -1)
        self._bias = tensors.take(f'{name}.bias', layer.channels)[:, None]
        self._padded = np.zeros((channels, height + 2 * pad, width + 2 * pad), dtype=np.float32)
        self._inside = self._padded[:, pad : pad + height, pad : pad + width]
        # where in the padded input each (channel, ky, kx) x (row, column) lies
        index = np.arange(self._padded.size).reshape(self._padded.shape)
        windows = np.lib.stride_tricks.sliding_window_view(index, (k, k), axis=(1, 2))
        windows = windows[:, ::stride, ::stride].transpose(0, 3, 4, 1, 2)
        self._gather = np.ascontiguousarray(windows.reshape(channels * k * k, rows * columns))
        self._patches = np.empty(self._gather.shape, dtype=np.float32)
        self.out = np.empty((layer.channels, rows, columns), dtype=np.float32)
        self._flat = self.out.reshape(layer.channels, -1)

    def run(self, pixels: F32) -> F32:
        np.copyto(self._inside, pixels)
        # mode='clip' lets take() write to `out` without a hidden copy; every index is in range
        np.take(self._padded.reshape(-1), self._gather, out=self._patches, mode='clip')
        np.matmul(self._weight, self._patches, out=self._flat)
        self._flat += self._bias
        np.maximum(self._flat, 0.0, out=self._flat)
        return self.out
