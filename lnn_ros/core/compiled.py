"""The Python face of the compiled core: the engine and the resampler, in C.

C checks what it is handed; what is wrong with that is said here. Memory belongs to numpy arrays
that are made once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnn_ros.core.numpy_engine import check_input, interval_error
from lnn_ros.core.tensors import Arrays, Tensors, take_cell
from lnn_ros.core.view import View
from lnn_ros.policy import CELLS, HOLDS, Contract, Policy
from lnn_ros.schema import PolicyError

F32 = NDArray[np.float32]
FASTEST = -1
# what module.c calls a cell with its solver, and the order in which it reads a cell's numbers
FORMS = [(cell, solver) for cell, solvers in CELLS.items() for solver in solvers]
SYNAPSES = ('sensory', 'synapses')
CELL_ARRAYS = {
    'liquid': [
        f'{layer}.{part}' for layer in ('tau', 'hidden', 'out') for part in ('weight', 'bias')
    ],
    'ltc_neural': [
        *('gate_input', 'gate_recurrent', 'gate_bias', 'gain'),
        *('drive', 'reversal', 'leak', 'rate'),
    ],
    'ltc_synaptic': [
        *(
            f'{kind}.{name}'
            for kind in SYNAPSES
            for name in ('source', 'target', 'w', 'sigma', 'mu', 'erev')
        ),
        *('gl', 'vl', 'cm', 'input_w', 'input_b', 'output_w', 'output_b'),
    ],
}


class CEngine:
    """Runs a policy in C; see `lnn_ros.core.Engine` for the methods' meaning.

    Args:
        policy: what to run.
        module: the compiled module (float32), or another build of it.
        variant: index into `module.variants()` of the inner loops to use; by default the fastest
            that this processor runs.
    """

    def __init__(self, policy: Policy, module: Any, variant: int = FASTEST) -> None:
        contract = policy.contract
        real = np.dtype(f'f{module.real_bits // 8}')
        sizes, arrays = _described(policy, real)
        layout = (sizes, contract.max_step, _age_scale(contract))
        size = module.engine_size(*layout)
        if size == 0:
            raise PolicyError('the network is larger than 1 GiB, or its sizes do not fit together')
        memory = np.zeros(size + 64, dtype=np.uint8)
        memory = memory[-memory.ctypes.data % 64 :][:size]
        engine = module.Engine(memory, variant, *layout, arrays, _refusal(contract, real))

        def numbers(start: int, count: int) -> Any:
            return memory[start : start + count * real.itemsize].view(real)

        state, outputs = engine.offsets()
        self.state = numbers(state, contract.units)
        engine.outputs = numbers(outputs, len(contract.outputs))
        # as they are: a method around each would cost as much as a small step
        self.hold_image, self.hold_imu = engine.hold_image, engine.hold_imu
        self.hold_image_age = engine.hold_image_age
        self.advance, self.jump, self.reset = engine.advance, engine.jump, engine.reset
        self.command = engine.command


def _refusal(contract: Contract, real: Any) -> Callable[[Any, str, Any], None]:
    """Return what an engine calls for an argument that it does not take."""
    image = contract.image
    shapes = {
        'hold_image': (image.channels, image.height, image.width) if image else None,
        'hold_imu': (len(contract.imu.fields),) if contract.imu else None,
    }

    def refuse(engine: Any, method: str, given: Any) -> None:
        if method == 'advance':
            raise interval_error(given, contract.max_step)
        if method == 'hold_image_age':
            if image is None:
                raise ValueError('this policy takes no image')
            raise ValueError(f'the image is {given} s old, but an age must be finite')
        name = method.removeprefix('hold_')
        check_input(given, shapes[method], name, real)
        if not given.flags.c_contiguous:
            return getattr(engine, method)(np.ascontiguousarray(given))
        if name == 'image':
            raise ValueError('the image has values that are not finite, it is ignored')
        raise ValueError(f'imu is {given}, but every value must be finite')

    return refuse


def _age_scale(contract: Contract) -> float:
    return contract.image.age_scale if contract.image else 1.0


def _described(policy: Policy, real: Any) -> tuple[NDArray[np.int64], tuple[NDArray[Any], ...]]:
    """Return a policy's sizes and numbers as module.c reads them, in the type `real`."""
    tensors = Tensors(policy)
    cell = take_cell(policy.contract, tensors)
    arrays = _arrays(policy.contract, tensors, cell)
    tensors.refuse_leftovers()
    indices = np.dtype(np.int64)
    types = [indices if array.dtype == indices else real for array in arrays]
    converted = [np.ascontiguousarray(a, t) for a, t in zip(arrays, types, strict=True)]
    return _sizes(policy.contract, cell), tuple(converted)


def _sizes(contract: Contract, cell: Arrays) -> NDArray[np.int64]:
    """Return the sizes in the order that module.c reads them in."""
    image, encoder = contract.image, contract.encoder
    layers = encoder.layers if encoder else ()
    readout = (*contract.readout, len(contract.outputs))
    form = FORMS.index((contract.cell, contract.solver))
    sizes = [form, contract.units, contract.motor_neurons, contract.unfolds]
    sizes += [cell[f'{kind}.w'].size if f'{kind}.w' in cell else 0 for kind in SYNAPSES]
    sizes += [len(contract.imu.fields) if contract.imu else 0]
    sizes += [image.channels, image.height, image.width] if image else [0, 0, 0]
    sizes += [encoder.features if encoder else 0, HOLDS.index(contract.hold)]
    sizes += [len(layers), len(contract.mapping), len(readout)]
    for layer in layers:
        sizes += [layer.channels, layer.kernel, layer.stride, layer.padding]
    return np.array([*sizes, *contract.mapping, *readout], dtype=np.int64)


def _arrays(contract: Contract, tensors: Tensors, cell: Arrays) -> list[NDArray[Any]]:
    """Return the numbers in the order that module.c reads them in."""
    take, inputs, outputs = tensors.take, contract.inputs, contract.outputs
    arrays: list[NDArray[Any]] = []
    if contract.encoder:
        shapes, encoder = contract.encoder_shapes, contract.encoder
        for i, layer in enumerate(encoder.layers):
            k, name = layer.kernel, f'encoder.{2 * i}'
            arrays.append(take(f'{name}.weight', layer.channels, shapes[i][0], k, k))
            arrays.append(take(f'{name}.bias', layer.channels))
        name = f'encoder.{2 * len(encoder.layers) + 1}'  # a Flatten stands between
        arrays.append(take(f'{name}.weight', encoder.features, math.prod(shapes[-1])))
        arrays.append(take(f'{name}.bias', encoder.features))
    mapping = tensors.take_stack('mapping', (inputs, *contract.mapping))
    arrays += [array for layer in mapping for array in layer]
    arrays += [cell[name] for name in CELL_ARRAYS[contract.cell]]
    sizes = (contract.motor_neurons + inputs, *contract.readout, len(outputs))
    arrays += [array for layer in tensors.take_stack('readout', sizes) for array in layer]
    low, high = (np.array([getattr(o, end) for o in outputs]) for end in ('min', 'max'))
    return [*arrays, (high + low) / 2, (high - low) / 2]


class CResampler:
    """Averages in C, straight from a message's bytes; see `lnn_ros.core.view.Resampler`."""

    def __init__(self, view: View, module: Any, variant: int = FASTEST) -> None:
        real = np.dtype(f'f{module.real_bits // 8}')
        channels, source_channels = view.mix.shape
        mix = np.zeros((4, 4))  # four channels of four at a time, used or not
        mix[:source_channels, :channels] = view.mix.T / view.scale
        offset = np.full(4, -view.mean / view.scale)

        def described(spans: Any) -> tuple[Any, ...]:
            return spans.first, spans.count, *(np.ascontiguousarray(s, real) for s in spans.shares)

        self._resampler = module.Resampler(
            variant,
            channels,
            source_channels,
            view.source_width,
            described(view.rows),
            described(view.columns),
            (mix.astype(real), offset.astype(real)),
        )
        self._real = real
        self._rows = int((view.rows.first + view.rows.count).max())
        self._shape = (channels, view.rows.first.size, view.columns.first.size)

    def see(self, buffer: NDArray[np.uint8], step: int, pixels: F32) -> None:
        if not self._resampler.see(buffer, step, pixels):
            check_input(pixels, self._shape, 'pixels', self._real)
            raise ValueError(f'{buffer.size} bytes are too few for {self._rows} rows of {step}')
