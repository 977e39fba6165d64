"""Which neuron has a synapse to which: signed adjacency, and the ways to draw one.

A wiring is its adjacency and nothing else, so that a saved one never depends on a random generator:
`Wiring(**wiring.to_dict())` gives it back. The four named wirings draw in the order of ncps 1.0.1,
so that a seed means the same circuit there and here.

Lechner et al., "Neural circuit policies enabling auditable autonomy", Nature Machine Intelligence
2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Signs = NDArray[np.int8]


class Wiring:
    """A circuit: every entry is 1 (excitatory), -1 (inhibitory) or 0 (no synapse).

    Args:
        synapses: (units, units), row = neuron before, column = neuron after.
        sensory: (inputs, units), from each input.
        outputs: how many neurons, from the first on, are motor neurons.

    Raises:
        ValueError: when the shapes do not fit or an entry is none of the three.
    """

    def __init__(self, synapses: ArrayLike, sensory: ArrayLike, outputs: int) -> None:
        self.synapses = _signs('synapses', synapses)
        self.sensory = _signs('sensory', sensory)
        self.inputs, self.units = self.sensory.shape
        self.outputs = outputs
        if self.synapses.shape != (self.units, self.units):
            raise ValueError(
                f'synapses has shape {self.synapses.shape}, but sensory {self.sensory.shape}: '
                f'it must be ({self.units}, {self.units})'
            )
        if not 1 <= outputs <= self.units:
            raise ValueError(f'outputs is {outputs}, must be from 1 to the {self.units} units')

    @property
    def count(self) -> int:
        """Count of all synapses, sensory ones included."""
        return int(np.count_nonzero(self.synapses) + np.count_nonzero(self.sensory))

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that make this wiring again, as JSON can keep them."""
        return {
            'synapses': self.synapses.tolist(),
            'sensory': self.sensory.tolist(),
            'outputs': self.outputs,
        }


def wiring_from_ncps(wiring: Any) -> Wiring:
    """Return the wiring that a built ncps wiring describes.

    Raises:
        ValueError: when it is none, or was not built yet: its sensory synapses are not known then.
    """
    if not hasattr(wiring, 'sensory_adjacency_matrix'):
        raise ValueError(f'{type(wiring).__name__} is no wiring, ours or of ncps')
    if not wiring.is_built():
        raise ValueError('this ncps wiring has no inputs yet: call its build(inputs) first')
    return Wiring(wiring.adjacency_matrix, wiring.sensory_adjacency_matrix, wiring.output_dim)


def _signs(name: str, matrix: ArrayLike) -> Signs:
    signs = np.asarray(matrix)
    if signs.ndim != 2 or signs.size == 0:
        raise ValueError(f'{name} has shape {signs.shape}, must be a matrix that is not empty')
    if not np.isin(signs, (-1, 0, 1)).all():
        raise ValueError(f'{name} has entries other than -1, 0 and 1')
    signs = signs.astype(np.int8)
    signs.setflags(write=False)  # cells are built on it
    return signs


class FullyConnected(Wiring):
    """Every input and every neuron to every neuron; two of three synapses are excitatory.

    Args:
        inputs, units, outputs: sizes; `outputs` is `units` unless given.
        seed: of the polarities.
        self_connections: whether a neuron has a synapse to itself.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        outputs: int | None = None,
        seed: int = 1111,
        self_connections: bool = True,
    ) -> None:
        rng = np.random.default_rng(seed)
        synapses = np.zeros((units, units), np.int8)
        for before, after in np.ndindex(units, units):
            if before != after or self_connections:
                synapses[before, after] = _mostly_excitatory(rng)
        sensory = np.zeros((inputs, units), np.int8)
        for before, after in np.ndindex(inputs, units):
            sensory[before, after] = _mostly_excitatory(rng)
        super().__init__(synapses, sensory, units if outputs is None else outputs)


class Random(Wiring):
    """Synapses anywhere; two of three are excitatory.

    Args:
        inputs, units, outputs: sizes; `outputs` is `units` unless given.
        sparsity: share of the possible synapses that is left out, 0 <= sparsity < 1.
        seed: of the places and the polarities.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        outputs: int | None = None,
        sparsity: float = 0.0,
        seed: int = 1111,
    ) -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f'sparsity is {sparsity}, must be at least 0 and less than 1')
        rng = np.random.default_rng(seed)
        synapses = np.zeros((units, units), np.int8)
        for before, after in _places(rng, units, units, sparsity):
            synapses[before, after] = _mostly_excitatory(rng)
        sensory = np.zeros((inputs, units), np.int8)
        for before, after in _places(rng, inputs, units, sparsity):
            _mostly_excitatory(rng)  # ncps draws a sensory polarity twice and keeps the second
            sensory[before, after] = _mostly_excitatory(rng)
        super().__init__(synapses, sensory, units if outputs is None else outputs)


def _mostly_excitatory(rng: np.random.Generator) -> int:
    return int(rng.choice((-1, 1, 1)))


def _places(rng: np.random.Generator, before: int, after: int, sparsity: float) -> NDArray[Any]:
    all_places = list(np.ndindex(before, after))
    count = int(np.round(before * after * (1.0 - sparsity)))
    return rng.choice(all_places, size=count, replace=False)


class NCP(Wiring):
    """A neural circuit policy: inputs -> inter -> command (recurrent) -> motor neurons.

    Neurons are in the order motor, command, inter. Polarities are even odds. After each layer is
    drawn, neurons that were left out get synapses too.

    Args:
        inputs, inter, command, motor: sizes of the four layers.
        sensory_fanout: synapses from each input to inter neurons.
        inter_fanout: synapses from each inter neuron to command neurons.
        recurrent_command: draws of synapses between command neurons; doubles fall together.
        motor_fanin: synapses into each motor neuron from command neurons.
        seed: of everything drawn.

    Raises:
        ValueError: when a fan is larger than the layer that it goes to or comes from.
    """

    def __init__(
        self,
        inputs: int,
        inter: int,
        command: int,
        motor: int,
        sensory_fanout: int,
        inter_fanout: int,
        recurrent_command: int,
        motor_fanin: int,
        seed: int = 22222,
    ) -> None:
        for name, fan, layer, size in (
            ('sensory_fanout', sensory_fanout, 'inter', inter),
            ('inter_fanout', inter_fanout, 'command', command),
            ('motor_fanin', motor_fanin, 'command', command),
        ):
            if not 1 <= fan <= size:
                raise ValueError(f'{name} is {fan}, must be from 1 to the {size} {layer} neurons')
        # the legacy generator: numpy promises that its stream never changes
        rng = np.random.RandomState(seed)
        units = motor + command + inter
        sensors = range(inputs)
        motors = range(motor)
        commands = range(motor, motor + command)
        inters = range(motor + command, units)
        synapses = np.zeros((units, units), np.int8)
        sensory = np.zeros((inputs, units), np.int8)

        _fan(rng, sensory, sensors, inters, sensory_fanout)
        _fan(rng, synapses, inters, commands, inter_fanout, command)  # as ncps has it
        for _ in range(recurrent_command):
            before, after = rng.choice(commands), rng.choice(commands)
            synapses[before, after] = rng.choice((-1, 1))
        _fan(rng, synapses.T, motors, commands, motor_fanin)
        super().__init__(synapses, sensory, motor)


def _fan(
    rng: np.random.RandomState,
    signs: Signs,
    near: Sequence[int],
    far: Sequence[int],
    fan: int,
    most: int | None = None,
) -> None:
    """Connect each of `near` with `fan` of `far`, then those of `far` that were left out.

    These get the mean number of synapses, at most `most`. `signs` is (near, far): pass its
    transpose where the synapses lead from far to near.
    """

    def connect(pairs: Iterable[tuple[int, int]]) -> None:
        for here, there in pairs:
            signs[here, there] = rng.choice((-1, 1))

    left_out = list(far)
    for here in near:
        chosen = rng.choice(far, size=fan, replace=False)
        connect((here, there) for there in chosen)
        left_out = [there for there in left_out if there not in chosen]
    mean = int(np.clip(len(near) * fan // len(far), 1, most or len(near)))
    for there in left_out:
        connect((here, there) for here in rng.choice(near, size=mean, replace=False))


class AutoNCP(NCP):
    """An NCP of `units` neurons, its layers and fans chosen as in ncps.

    Args:
        inputs, units, outputs: sizes; `outputs` motor neurons, at most units - 3.
        sparsity: 0.1 (dense) ... 1 (sparse).
        seed: of everything drawn.
    """

    def __init__(
        self, inputs: int, units: int, outputs: int, sparsity: float = 0.5, seed: int = 22222
    ) -> None:
        if not 1 <= outputs < units - 2:
            raise ValueError(f'outputs is {outputs}, must be from 1 to units - 3 = {units - 3}')
        if not 0.1 <= sparsity <= 1.0:
            raise ValueError(f'sparsity is {sparsity}, must be from 0.1 to 1')
        density = 1.0 - sparsity
        command = max(int(0.4 * (units - outputs)), 1)
        inter = units - outputs - command
        super().__init__(
            inputs,
            inter,
            command,
            outputs,
            sensory_fanout=max(int(inter * density), 1),
            inter_fanout=max(int(command * density), 1),
            recurrent_command=max(int(2.0 * command * density), 1),
            motor_fanin=max(int(command * density), 1),
            seed=seed,
        )
