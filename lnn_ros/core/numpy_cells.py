"""The liquid cells in numpy, one step of one state; equations in `lnn_ros.liquid.cells`.

Every array is made once, at set-up. A cell is driven by what `drive` makes of an input; between two
inputs that goes evenly, so it is either affine in the input or the input itself.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lnn_ros.core.tensors import Arrays
from lnn_ros.policy import Contract

F32 = NDArray[np.float32]


class Cell(Protocol):
    """What the engine asks of a cell."""

    driven: int
    """Length of what `drive` gives."""

    def drive(self, x: F32, driven: F32) -> None:
        """Fill `driven` from the cell's input x (cell_inputs)."""

    def take(self, driven: F32) -> None:
        """Compute what the input alone decides, for the steps until it changes."""

    def step(self, state: F32, dt: float) -> None:
        """Advance `state` (units) by one sub-step of `dt` seconds."""


def make_cell(contract: Contract, arrays: Arrays) -> Cell:
    """Return the cell of a policy; `arrays` is what `tensors.take_cell` gave."""
    make: dict[str, Any] = {'ltc_neural': _Neural, 'ltc_synaptic': _Synaptic, 'liquid': _Liquid}
    return make[contract.cell](contract, arrays)


class _Neural:
    def __init__(self, contract: Contract, arrays: Arrays) -> None:
        units = contract.units
        # Both products with the input are one matrix: rows [:units] drive the gate, rows [units:]
        # the equilibrium.
        self._of_input = np.concatenate((arrays['gate_input'], arrays['drive']))
        self._bias = np.concatenate((arrays['gate_bias'], arrays['leak']))
        self._recurrent, self._gain = arrays['gate_recurrent'], arrays['gain']
        self._reversal, self._rate = arrays['reversal'], arrays['rate']
        self.driven = 2 * units
        self._gate, self._work = np.empty((2, units), dtype=np.float32)

    def drive(self, x: F32, driven: F32) -> None:
        np.matmul(self._of_input, x, out=driven)
        driven += self._bias

    def take(self, driven: F32) -> None:
        self._driven = driven

    def step(self, state: F32, dt: float) -> None:
        gate, work, units, driven = self._gate, self._work, state.size, self._driven
        np.matmul(self._recurrent, state, out=gate)
        gate += driven[:units]
        # f = gain * sigmoid(pre)
        _sigmoid(gate)
        gate *= self._gain
        # equilibrium = (leak + drive + f * reversal) / (1 + f)
        np.multiply(gate, self._reversal, out=work)
        work += driven[units:]
        gate += 1.0
        work /= gate
        gate *= self._rate
        _relax(state, work, gate, dt)


class _Synaptic:
    def __init__(self, contract: Contract, arrays: Arrays) -> None:
        units = contract.units
        self._w, self._b = arrays['input_w'], arrays['input_b']
        self.driven = contract.cell_inputs
        self._sensory, self._synapses = (
            _Synapses(arrays, kind) for kind in ('sensory', 'synapses')
        )
        self._gl, self._cm = arrays['gl'], arrays['cm']
        self._leak = self._gl * arrays['vl']
        self._is_fused = contract.solver == 'fused'
        self._of_input = np.empty((2, units), dtype=np.float32)  # conductances, currents
        self._sums = np.empty_like(self._of_input)

    def drive(self, x: F32, driven: F32) -> None:
        np.multiply(self._w, x, out=driven)
        driven += self._b

    def take(self, driven: F32) -> None:
        g, current = self._of_input
        g[:], current[:] = self._gl, self._leak
        self._sensory.open(driven, g, current)

    def step(self, state: F32, dt: float) -> None:
        np.copyto(self._sums, self._of_input)
        g, current = self._sums
        self._synapses.open(state, g, current)
        if self._is_fused:
            # (h + dt rate e) / (1 + dt rate), with e = current / g and rate = g / cm
            step = np.float32(dt)
            current *= step
            state *= self._cm
            state += current
            g *= step
            g += self._cm
            state /= g
        else:
            current /= g
            g /= self._cm
            _relax(state, current, g, dt)


class _Synapses:
    """Synapses in the order of their targets, whose sums are then slices."""

    def __init__(self, arrays: Arrays, kind: str) -> None:
        def of(name: str) -> Any:
            return arrays[f'{kind}.{name}']

        self._source, self._w, self._erev = of('source'), of('w'), of('erev')
        self._sigma, self._mu = of('sigma'), of('mu')
        self._targets, self._first = np.unique(of('target'), return_index=True)
        self._open, self._pull = np.empty((2, self._w.size), dtype=np.float32)
        self._sums = np.empty(self._targets.size, dtype=np.float32)

    def open(self, before: F32, g: F32, current: F32) -> None:
        """Add conductances and currents that the voltages `before` the synapses bring about."""
        if not self._targets.size:
            return
        opened = self._open
        np.take(before, self._source, out=opened, mode='clip')
        opened -= self._mu
        opened *= self._sigma
        _sigmoid(opened)
        opened *= self._w
        np.multiply(opened, self._erev, out=self._pull)
        for values, sums in ((opened, g), (self._pull, current)):
            np.add.reduceat(values, self._first, out=self._sums)
            sums[self._targets] += self._sums


class _Liquid:
    def __init__(self, contract: Contract, arrays: Arrays) -> None:
        self._arrays = arrays
        self.driven = contract.cell_inputs
        self._rate, self._f, self._work = np.empty((3, contract.units), dtype=np.float32)
        self._hidden, self._gate = np.empty((2, 2 * contract.units), dtype=np.float32)

    def drive(self, x: F32, driven: F32) -> None:
        np.copyto(driven, x)

    def take(self, driven: F32) -> None:
        for name, x, out in (
            ('tau', driven, self._rate),
            ('hidden', driven, self._hidden),
            ('out', self._hidden, self._f),
        ):
            np.matmul(self._arrays[f'{name}.weight'], x, out=out)
            out += self._arrays[f'{name}.bias']
            if name == 'hidden':  # SiLU
                np.copyto(self._gate, out)
                out *= _sigmoid(self._gate)
        # tau = softplus(...) + 0.1 s
        rate = np.logaddexp(np.float32(0.0), self._rate, out=self._rate)
        rate += np.float32(0.1)
        np.reciprocal(rate, out=rate)

    def step(self, state: F32, dt: float) -> None:
        np.copyto(self._work, self._rate)
        _relax(state, self._f, self._work, dt)


def _sigmoid(x: F32) -> F32:
    """Compute in place, as tanh: exp would overflow far below 0."""
    x *= 0.5
    np.tanh(x, out=x)
    x += 1.0
    x *= 0.5
    return x


def _relax(state: F32, equilibrium: F32, rate: F32, dt: float) -> None:
    """Let `state` go to `equilibrium` for `dt` seconds at `rate`, which is used up."""
    rate *= np.float32(-dt)
    np.exp(rate, out=rate)
    state -= equilibrium
    state *= rate
    state += equilibrium
