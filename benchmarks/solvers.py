"""Print what each solver costs and how far it is off, for each cell: the table of docs/network.md.

    python benchmarks/solvers.py

32 units with the weights that they start out with, 4 inputs drawn anew from 0 ... 1, float64, one
thread. Errors are the root mean square over samples and units, relative to the states' standard
deviation, from the states of a long run of random inputs. The truth is dopri5 with rtol 1e-10.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lnn_ros.liquid.cells import Cell, LiquidCell, NeuralLTC, SynapticLTC
from lnn_ros.liquid.sequence import unroll
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import FullyConnected

SAMPLES, UNITS, INPUTS = 64, 32, 4
CELLS: dict[str, Callable[[], Cell]] = {
    'neural': lambda: NeuralLTC(INPUTS, UNITS),
    'synaptic': lambda: SynapticLTC(FullyConnected(INPUTS, UNITS)),
    'LiquidCell': lambda: LiquidCell(INPUTS, UNITS),
}
SOLVERS = {
    'exact, one step': Solver('exact', max_step=math.inf),
    'exact': Solver('exact'),
    'exact, 10 ms': Solver('exact', max_step=0.01),
    'fused, 6 unfolds': Solver('fused', max_step=math.inf, unfolds=6),
    'fused': Solver('fused'),
    'euler': Solver('euler'),
    'midpoint': Solver('midpoint'),
    'rk4': Solver('rk4'),
    'dopri5': Solver('dopri5', max_step=math.inf),
}
TRUTH = Solver('dopri5', rtol=1e-10, atol=1e-10, max_steps=10_000)


def row(cell: Cell, solver: Solver, u: Tensor, h: Tensor) -> list[float]:
    """Return four errors, and the best of five CPU times that 0.1 s take, for one sample."""
    scale = h.std()

    def advanced(solver: Solver, *intervals: float) -> Tensor:
        cell.solver, after = solver, h
        for dt in intervals:
            after = cell(u, after, dt)
        return after

    def error(one: Tensor, other: Tensor) -> float:
        return float((one - other).square().mean().sqrt() / scale)

    errors = [error(advanced(solver, dt), advanced(TRUTH, dt)) for dt in (0.02, 0.1, 1.0)]
    errors.append(error(advanced(solver, 0.1), advanced(solver, *[0.01] * 10)))
    steps, times = 50, []
    for _ in range(5):
        begun = time.process_time()
        unroll(cell, u[:1].unsqueeze(1).expand(1, steps, INPUTS), 0.1, h[:1])
        times.append((time.process_time() - begun) / steps)
    return [*errors, min(times)]


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name, make in CELLS.items():
        print(f'\n| {name} | 20 ms | 0.1 s | 1 s | 0.1 s against 10 x 10 ms | µs per 0.1 s |')
        print('|---|---|---|---|---|---|')
        for solver_name, solver in SOLVERS.items():
            torch.manual_seed(0)
            cell = make()
            u = torch.rand(SAMPLES, INPUTS)
            with torch.no_grad():
                h = unroll(cell, torch.rand(SAMPLES, 50, INPUTS), 0.1)[:, -1]
                *errors, seconds = row(cell, solver, u, h)
            figures = ' | '.join(f'{e:.0e}' if e > 1e-15 else '0' for e in errors)
            print(f'| {solver_name} | {figures} | {1e6 * seconds:.0f} |')


if __name__ == '__main__':
    main()
