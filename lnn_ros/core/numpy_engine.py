"""The policy step in numpy: every array is made once, at set-up."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lnn_ros.policy import Contract, ConvLayer, Policy, PolicyError

F32 = NDArray[np.float32]


def sub_steps(dt: float, max_step: float) -> int:
    """Return how many equal sub-steps of at most `max_step` make up `dt`.

    The margin keeps a dt of a whole number of steps at that number in float32 and float64 alike.
    """
    return max(math.ceil(dt / max_step * (1.0 - 1e-6)), 1)


class NumpyEngine:
    """Runs a policy with numpy alone; see `lnn_ros.core.Engine` for the methods' meaning."""

    def __init__(self, policy: Policy) -> None:
        contract = policy.contract
        tensors = _Tensors(policy)
        units, inputs = contract.units, contract.inputs
        self._encoder = _Encoder(contract, tensors) if contract.encoder else None

        # Neural LTC (lnn_ros.liquid.cells.NeuralLTC). Both products with the input are one matrix:
        # rows [:units] drive the gate, rows [units:] the equilibrium.
        self._of_input = np.concatenate(
            (
                tensors.take('cell.gate_input', units, inputs),
                tensors.take('cell.drive', units, inputs),
            )
        )
        self._bias = np.concatenate(
            (tensors.take('cell.gate_bias', units), tensors.take('cell.leak', units))
        )
        self._recurrent = tensors.take('cell.gate_recurrent', units, units)
        self._gain = np.exp(tensors.take('cell.log_gain', units))
        self._reversal = tensors.take('cell.reversal', units)
        self._rate = np.exp(-tensors.take('cell.log_tau', units))  # 1 / tau, 1/s
        self._max_step = contract.max_step

        self._joint = np.zeros(units + inputs, dtype=np.float32)  # [state, held inputs]
        self.state = self._joint[:units]
        self._inputs = self._joint[units:]
        features = contract.encoder.features if contract.encoder else 0
        self._features = self._inputs[:features]
        self._imu = self._inputs[features + 1 :] if features else self._inputs
        self._age_index = units + features
        self._age_scale = contract.image.age_scale if contract.image else 1.0
        self._driven = np.empty(2 * units, dtype=np.float32)
        self._drive_is_current = False
        self._gate = np.empty(units, dtype=np.float32)
        self._work = np.empty(units, dtype=np.float32)

        sizes = (units + inputs, *contract.readout, len(contract.outputs))
        self._readout = [
            (
                tensors.take(f'readout.{2 * i}.weight', sizes[i + 1], sizes[i]),
                tensors.take(f'readout.{2 * i}.bias', sizes[i + 1]),
                np.empty(sizes[i + 1], dtype=np.float32),
            )
            for i in range(len(sizes) - 1)
        ]
        low = np.array([output.min for output in contract.outputs])
        high = np.array([output.max for output in contract.outputs])
        self._middle = ((high + low) / 2).astype(np.float32)
        self._half = ((high - low) / 2).astype(np.float32)
        tensors.refuse_leftovers()

    def reset(self) -> None:
        self.state[:] = 0.0

    def hold_image(self, pixels: F32) -> None:
        if self._encoder is None:
            raise ValueError('this policy takes no image')
        self._encoder.run(pixels, self._features)
        self._drive_is_current = False

    def hold_image_age(self, age: float) -> None:
        self._joint[self._age_index] = age / self._age_scale
        self._drive_is_current = False

    def hold_imu(self, values: F32) -> None:
        self._imu[:] = values
        self._drive_is_current = False

    def advance(self, dt: float) -> None:
        if not (dt > 0.0 and math.isfinite(dt)):
            raise ValueError(f'dt is {dt} s, but an interval must be finite and greater than 0 s')
        units = self.state.size
        if not self._drive_is_current:
            np.matmul(self._of_input, self._inputs, out=self._driven)
            self._driven += self._bias
            self._drive_is_current = True
        steps = sub_steps(dt, self._max_step)
        step = np.float32(-dt / steps)
        gate, work, state = self._gate, self._work, self.state
        for _ in range(steps):
            # f = gain * sigmoid(pre), as tanh: exp would overflow for a strongly closed gate
            np.matmul(self._recurrent, state, out=gate)
            gate += self._driven[:units]
            gate *= 0.5
            np.tanh(gate, out=gate)
            gate += 1.0
            gate *= 0.5
            gate *= self._gain
            # equilibrium = (leak + drive + f * reversal) / (1 + f)
            np.multiply(gate, self._reversal, out=work)
            work += self._driven[units:]
            gate += 1.0
            work /= gate
            # state = equilibrium + (state - equilibrium) * exp(-dt (1 + f) / tau)
            gate *= self._rate
            gate *= step
            np.exp(gate, out=gate)
            state -= work
            state *= gate
            state += work

    def command(self) -> F32:
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
        return value


class _Encoder:
    """Convolutions with ReLU as gather + matrix product, then linear and tanh."""

    def __init__(self, contract: Contract, tensors: _Tensors) -> None:
        assert contract.image is not None and contract.encoder is not None
        shape = (contract.image.channels, contract.image.height, contract.image.width)
        self._shape = shape
        self._layers = []
        for i, layer in enumerate(contract.encoder.layers):
            self._layers.append(_Convolution(layer, shape, f'encoder.{2 * i}', tensors))
            shape = self._layers[-1].out.shape
        index = 2 * len(self._layers) + 1  # a Flatten stands between
        features = contract.encoder.features
        self._weight = tensors.take(f'encoder.{index}.weight', features, math.prod(shape))
        self._bias = tensors.take(f'encoder.{index}.bias', features)

    def run(self, pixels: F32, features: F32) -> None:
        if pixels.shape != self._shape:
            raise ValueError(f'image has shape {pixels.shape}, the policy takes {self._shape}')
        for layer in self._layers:
            pixels = layer.run(pixels)
        np.matmul(self._weight, pixels.reshape(-1), out=features)
        features += self._bias
        np.tanh(features, out=features)


class _Convolution:
    def __init__(
        self, layer: ConvLayer, shape: tuple[int, ...], name: str, tensors: _Tensors
    ) -> None:
        channels, height, width = shape
        k, stride, pad = layer.kernel, layer.stride, layer.padding
        rows = (height + 2 * pad - k) // stride + 1
        columns = (width + 2 * pad - k) // stride + 1
        if rows < 1 or columns < 1:
            raise PolicyError(f'{name}: a {k}x{k} kernel does not fit a {width}x{height} input')
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


class _Tensors:
    """Hands out a policy's tensors by name, checking shapes, each once."""

    def __init__(self, policy: Policy) -> None:
        self._left = dict(policy.tensors)

    def take(self, name: str, *shape: int) -> F32:
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise PolicyError(f"tensor '{name}' is missing")
        if tensor.shape != shape:
            raise PolicyError(f"tensor '{name}' has shape {tensor.shape}, must be {shape}")
        return tensor

    def refuse_leftovers(self) -> None:
        if self._left:
            raise PolicyError(f'unknown tensors: {", ".join(sorted(self._left))}')
