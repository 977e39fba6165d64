"""The Python face of the compiled core: the engine and the resampler, in C.

Everything is checked here, before C is called: types, sizes, finite numbers. Memory belongs to
numpy arrays that are made once; C only ever sees pointers into them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnn_ros.core.numpy_engine import check_input, interval_error
from lnn_ros.core.tensors import Tensors
from lnn_ros.core.view import View
from lnn_ros.policy import Contract, Policy, PolicyError

F32 = NDArray[np.float32]
_NONE_YET = (
    object(),
    None,
)  # the last input array and its address; finding that costs a microsecond


class CEngine:
    """Runs a policy in C; see `lnn_ros.core.Engine` for the methods' meaning.

    Args:
        policy: what to run.
        module: the compiled module (float32), or another build of it.
        variant: which of the module's inner loops to use; by default the fastest that this
            processor runs.
    """

    def __init__(self, policy: Policy, module: Any, variant: int | None = None) -> None:
        contract, lib = policy.contract, module.lib
        self._ffi = module.ffi
        self._real = np.dtype(f'f{self._ffi.sizeof("real")}')
        kernels = lib.lnn_best_kernels() if variant is None else lib.lnn_kernels_at(variant)
        if kernels == self._ffi.NULL:
            raise ValueError(f'this processor has no variant {variant} of the inner loops')
        self.variant = self._ffi.string(lib.lnn_kernels_name(kernels)).decode()
        self._keep: list[Any] = []  # what C points to while the engine is laid out
        described = self._describe(contract, Tensors(policy))
        size = lib.lnn_engine_size(described)
        if size == 0:
            raise PolicyError('the network is larger than 1 GiB, or its sizes do not fit together')
        memory = np.zeros(size + 64, dtype=np.uint8)
        memory = memory[-memory.ctypes.data % 64 :][:size]
        self._memory = self._ffi.from_buffer(memory, require_writable=True)  # keeps it alive
        self._engine = lib.lnn_engine_place(self._memory, described, kernels)
        self._keep.clear()

        self.state = self._view(memory, lib.lnn_engine_state(self._engine), contract.units)
        outputs = lib.lnn_engine_outputs(self._engine)
        self._outputs = self._view(memory, outputs, len(contract.outputs))
        self._max_step = contract.max_step
        image = contract.image
        self._image_shape = (image.channels, image.height, image.width) if image else None
        self._imu_shape = (len(contract.imu.fields),) if contract.imu else None
        # bound once: looking each up would cost as much as the call
        self._hold_image, self._hold_imu = lib.lnn_hold_image, lib.lnn_hold_imu
        self._hold_age, self._advance = lib.lnn_hold_age, lib.lnn_advance
        self._command = lib.lnn_command
        self._pixels: tuple[Any, Any] = _NONE_YET
        self._values: tuple[Any, Any] = _NONE_YET

    def reset(self) -> None:
        self.state[:] = 0.0

    def hold_image(self, pixels: F32) -> None:
        array, address = self._pixels
        if pixels is not array:
            address = self._address(pixels, self._image_shape, 'image')
            self._pixels = (pixels, address) if pixels.flags.c_contiguous else _NONE_YET
        if not self._hold_image(self._engine, address):
            raise ValueError('the image has values that are not finite, it is ignored')

    def hold_image_age(self, age: float) -> None:
        if not self._hold_age(self._engine, age):
            if self._image_shape is None:
                raise ValueError('this policy takes no image')
            raise ValueError(f'the image is {age} s old, but an age must be finite')

    def hold_imu(self, values: F32) -> None:
        array, address = self._values
        if values is not array:
            address = self._address(values, self._imu_shape, 'imu')
            self._values = (values, address) if values.flags.c_contiguous else _NONE_YET
        if not self._hold_imu(self._engine, address):
            raise ValueError(f'imu is {values}, but every value must be finite')

    def advance(self, dt: float) -> None:
        if not self._advance(self._engine, dt):
            raise interval_error(dt, self._max_step)

    def command(self) -> F32:
        self._command(self._engine)
        return self._outputs

    def _address(self, array: F32, shape: tuple[int, ...] | None, name: str) -> Any:
        """Return a pointer to the numbers, which keeps them alive."""
        check_input(array, shape, name, self._real)
        return self._ffi.from_buffer('real[]', np.ascontiguousarray(array))

    def _view(self, memory: NDArray[np.uint8], pointer: Any, count: int) -> Any:
        """Return `count` numbers at `pointer` inside `memory` as an array that keeps it alive."""
        start = int(self._ffi.cast('uintptr_t', pointer)) - memory.ctypes.data
        return memory[start : start + count * self._real.itemsize].view(self._real)

    def _real_array(self, values: NDArray[Any]) -> Any:
        array = self._ffi.from_buffer('real[]', np.ascontiguousarray(values, dtype=self._real))
        self._keep.append(array)
        return array

    def _describe(self, contract: Contract, tensors: Tensors) -> Any:
        ffi, real = self._ffi, self._real_array
        units, inputs = contract.units, contract.inputs
        policy = ffi.new('lnn_policy *')
        policy.units, policy.max_step = units, contract.max_step
        policy.imu = len(contract.imu.fields) if contract.imu else 0
        policy.age_scale = contract.image.age_scale if contract.image else 1.0
        if contract.encoder:
            self._describe_encoder(policy, contract, tensors)
        cell = policy.cell
        cell.gate_input = real(tensors.take('cell.gate_input', units, inputs))
        cell.gate_recurrent = real(tensors.take('cell.gate_recurrent', units, units))
        cell.gate_bias = real(tensors.take('cell.gate_bias', units))
        cell.gain = real(tensors.take_exp('cell.log_gain', units))
        cell.drive = real(tensors.take('cell.drive', units, inputs))
        cell.reversal = real(tensors.take('cell.reversal', units))
        cell.leak = real(tensors.take('cell.leak', units))
        cell.rate = real(tensors.take_exp('cell.log_tau', units, sign=-1))
        sizes = (units + inputs, *contract.readout, len(contract.outputs))
        layers = ffi.new('lnn_linear[]', len(sizes) - 1)
        for i, layer in enumerate(layers):
            layer.outputs = sizes[i + 1]
            layer.weight = real(tensors.take(f'readout.{2 * i}.weight', sizes[i + 1], sizes[i]))
            layer.bias = real(tensors.take(f'readout.{2 * i}.bias', sizes[i + 1]))
        policy.readout, policy.readouts = layers, len(layers)
        low = np.array([output.min for output in contract.outputs])
        high = np.array([output.max for output in contract.outputs])
        policy.middle, policy.half = real((high + low) / 2), real((high - low) / 2)
        self._keep.append(layers)
        tensors.refuse_leftovers()
        return policy

    def _describe_encoder(self, policy: Any, contract: Contract, tensors: Tensors) -> None:
        assert contract.image is not None and contract.encoder is not None
        image, encoder, real = contract.image, contract.encoder, self._real_array
        policy.channels, policy.height, policy.width = image.channels, image.height, image.width
        layers = self._ffi.new('lnn_convolution[]', len(encoder.layers))
        shapes = contract.encoder_shapes
        for i, (layer, spec) in enumerate(zip(layers, encoder.layers, strict=True)):
            k = spec.kernel
            layer.channels, layer.kernel = spec.channels, k
            layer.stride, layer.padding = spec.stride, spec.padding
            name = f'encoder.{2 * i}'
            layer.weight = real(tensors.take(f'{name}.weight', spec.channels, shapes[i][0], k, k))
            layer.bias = real(tensors.take(f'{name}.bias', spec.channels))
        policy.convolution, policy.convolutions = layers, len(layers)
        name = f'encoder.{2 * len(layers) + 1}'  # a Flatten stands between
        features = policy.features
        features.outputs = encoder.features
        flat = math.prod(shapes[-1])
        features.weight = real(tensors.take(f'{name}.weight', encoder.features, flat))
        features.bias = real(tensors.take(f'{name}.bias', encoder.features))
        self._keep.append(layers)


class CResampler:
    """Averages in C, straight from a message's bytes; see `lnn_ros.core.view.Resampler`."""

    def __init__(self, view: View, module: Any, variant: int | None = None) -> None:
        ffi, lib = module.ffi, module.lib
        real = np.dtype(f'f{ffi.sizeof("real")}')
        self._keep: list[Any] = []

        def kept(kind: str, values: NDArray[Any], dtype: Any) -> Any:
            self._keep.append(ffi.from_buffer(kind, np.ascontiguousarray(values, dtype=dtype)))
            return self._keep[-1]

        self._lib, self._ffi = lib, ffi
        self._kernels = lib.lnn_best_kernels() if variant is None else lib.lnn_kernels_at(variant)
        described = ffi.new('lnn_view *')
        for to, spans in ((described.rows, view.rows), (described.columns, view.columns)):
            to.target = spans.first.size
            to.first = kept('int64_t[]', spans.first, np.int64)
            to.count = kept('int64_t[]', spans.count, np.int64)
            to.first_share = kept('real[]', spans.shares[0], real)
            to.inner_share = kept('real[]', spans.shares[1], real)
            to.last_share = kept('real[]', spans.shares[2], real)
        channels, source_channels = view.mix.shape
        mix = np.zeros((source_channels, 4))
        mix[:, :channels] = view.mix.T / view.scale
        described.mix = kept('real[]', mix, real)
        described.offset = kept('real[]', np.full(4, -view.mean / view.scale), real)
        described.channels, described.source_channels = channels, source_channels
        described.source_width = view.source_width
        self._view = described
        self._scratch = kept('real[]', np.zeros(lib.lnn_view_scratch(described)), real)
        rows = view.rows
        self._rows = int((rows.first + rows.count).max())
        self._row = view.source_width * view.mix.shape[1]
        self._shape = (view.mix.shape[0], rows.first.size, view.columns.first.size)
        self._real = real

    def see(self, buffer: NDArray[np.uint8], step: int, pixels: F32) -> None:
        if buffer.size < (self._rows - 1) * step + self._row or step < self._row:
            raise ValueError(f'{buffer.size} bytes are too few for {self._rows} rows of {step}')
        check_input(pixels, self._shape, 'pixels', self._real)
        address = self._ffi.from_buffer
        self._lib.lnn_see(
            self._view,
            self._kernels,
            address('uint8_t[]', buffer),
            step,
            self._scratch,
            address('real[]', pixels, require_writable=True),
        )
