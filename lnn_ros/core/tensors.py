"""A policy's tensors, taken out one by one and checked against the contract's sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnn_ros.policy import Contract, Policy
from lnn_ros.schema import PolicyError

F32 = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


class Tensors:
    """Hands out a policy's tensors by name, checking shapes, each once."""

    def __init__(self, policy: Policy) -> None:
        self._left = dict(policy.tensors)

    def take(self, name: str, *shape: int) -> F32:
        """Return tensor `name`.

        Raises:
            PolicyError: when it is missing or has another shape.
        """
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise PolicyError(f"tensor '{name}' is missing")
        if tensor.shape != shape:
            raise PolicyError(f"tensor '{name}' has shape {tensor.shape}, must be {shape}")
        return tensor

    def take_exp(self, name: str, *shape: int, sign: int = 1) -> F32:
        """Return exp(sign * tensor) for a number that is stored as its logarithm.

        Raises:
            PolicyError: as `take`, and when the result is not finite.
        """
        with np.errstate(over='ignore'):
            value = np.exp(sign * self.take(name, *shape))
        if not np.isfinite(value).all():
            raise PolicyError(f"tensor '{name}' holds a logarithm whose exponential is infinite")
        return value

    def take_positive(self, name: str, *shape: int) -> F32:
        """Return softplus(tensor) for a positive number; raises PolicyError as `take`."""
        return np.logaddexp(np.float32(0.0), self.take(name, *shape))

    def take_stack(self, name: str, sizes: tuple[int, ...]) -> list[tuple[F32, F32]]:
        """Return (weight, bias) of each linear layer between layers of these sizes."""
        return [
            (
                self.take(f'{name}.{2 * i}.weight', sizes[i + 1], sizes[i]),
                self.take(f'{name}.{2 * i}.bias', sizes[i + 1]),
            )
            for i in range(len(sizes) - 1)
        ]

    def refuse_leftovers(self) -> None:
        """Raise PolicyError if a tensor was never taken."""
        if self._left:
            raise PolicyError(f'unknown tensors: {", ".join(sorted(self._left))}')


def take_cell(contract: Contract, tensors: Tensors) -> Arrays:
    """Return the numbers of the cell's equation (`lnn_ros.liquid.cells`), by their names there.

    What is stored as a logarithm or before a softplus comes as itself: `gain`, `rate` (1 / tau, in
    1/s), `w`, `gl`, `cm`. The synapses of a wiring come as `synapses.source`,
    `.target`, `.w`, `.sigma`, `.mu`, `.erev` (n), in the order of their targets, and the same under
    `sensory`.

    Raises:
        PolicyError: when a tensor is missing, has another shape or is out of range.
    """
    units, seen = contract.units, contract.cell_inputs
    shapes: dict[str, tuple[int, ...]] = {}
    arrays: Arrays = {}
    if contract.cell == 'ltc_neural':
        shapes = dict.fromkeys(('gate_bias', 'reversal', 'leak'), (units,))
        shapes |= {'gate_input': (units, seen), 'drive': (units, seen)}
        shapes['gate_recurrent'] = (units, units)
        arrays['gain'] = tensors.take_exp('cell.log_gain', units)
        arrays['rate'] = tensors.take_exp('cell.log_tau', units, sign=-1)
    elif contract.cell == 'liquid':
        for name, (rows, columns) in (
            ('tau', (units, seen)),
            ('hidden', (2 * units, seen)),
            ('out', (units, 2 * units)),
        ):
            shapes |= {f'{name}.weight': (rows, columns), f'{name}.bias': (rows,)}
    else:
        motors = contract.motor_neurons
        shapes = {'vl': (units,), 'input_w': (seen,), 'input_b': (seen,)}
        shapes |= {'output_w': (motors,), 'output_b': (motors,)}
        # both stand below a fraction line, as in liquid.cells
        arrays['gl'] = np.maximum(tensors.take_positive('cell.raw_gl', units), np.float32(1e-8))
        arrays['cm'] = np.maximum(tensors.take_positive('cell.raw_cm', units), np.float32(1e-8))
        arrays |= _take_synapses('sensory', seen, units, tensors)
        arrays |= _take_synapses('synapses', units, units, tensors)
    return arrays | {name: tensors.take(f'cell.{name}', *shape) for name, shape in shapes.items()}


def _take_synapses(kind: str, sources: int, targets: int, tensors: Tensors) -> Arrays:
    name = f'cell.{kind}.adjacency'
    adjacency = tensors.take(name, sources, targets)
    if not np.isin(adjacency, (-1.0, 0.0, 1.0)).all():
        raise PolicyError(f"tensor '{name}' must hold nothing but -1, 0 and 1")
    source, target = (index.astype(np.int64) for index in adjacency.nonzero())
    order = np.argsort(target, kind='stable')
    count = source.size
    arrays: Arrays = {'source': source, 'target': target}
    arrays['w'] = tensors.take_positive(f'cell.{kind}.raw_w', count)
    for field in ('sigma', 'mu', 'erev'):
        arrays[field] = tensors.take(f'cell.{kind}.{field}', count)
    return {f'{kind}.{field}': np.ascontiguousarray(a[order]) for field, a in arrays.items()}
