"""What each part of the recipe behind `lnn_ros bench rates` is worth: one change at a time.

    python benchmarks/rates_ablation.py [--iterations N] [--processes N] [--json FILE]

Three seeds of each variant at 10 Hz, side by side for as many iterations, whatever they take: how
busy the machine is does not show. "units" is chosen so that the parameter count is the benchmark's,
unless the name says otherwise.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lnn_ros.liquid.cells import NeuralLTC, SynapticLTC
from lnn_ros.liquid.network import exact_param_count
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import FullyConnected
from lnn_ros.training import known_system as system
from lnn_ros.training import rates
from lnn_ros.training.rate_nets import GRU, INPUTS, OUTPUTS, CfC, Liquid, Net, mlp
from lnn_ros.training.rates import FEATURES, FINER, TAU_RANGE, Contender


def neural(
    units: int,
    hold: str = 'linear',
    tau_range: tuple[float, float] = TAU_RANGE,
    max_step: float = rates.MAX_STEP,
    features: int = FEATURES,
    layers: int = 1,
    mlp_readout: bool = True,
    gain: float = 1.0,
    current: bool = True,
) -> Net:
    solver = Solver('exact', max_step)
    sizes = [features or INPUTS] + [units] * (layers - 1)
    cells = [NeuralLTC(size, units, tau_range, solver) for size in sizes]
    for cell in cells:
        cell.log_gain.data.fill_(gain).log_()
        if not current:
            cell.drive.requires_grad_(False).zero_()
    linear = nn.Linear(units * layers + INPUTS, OUTPUTS)
    mapping = mlp(2 * features, features) if features else None
    return Liquid(list(cells), hold, mapping, None if mlp_readout else linear)


def synaptic(units: int, features: int = FEATURES, signed: bool = False, fixed: int = 0) -> Net:
    cell = SynapticLTC(
        FullyConnected(features or INPUTS, fixed or units), TAU_RANGE, Solver('exact', 0.1)
    )
    cell.output_w.requires_grad_(False)
    cell.output_b.requires_grad_(False)
    if signed:  # ncps's ranges suit inputs in 0 ... 1, these are in -2.4 ... 2.4
        for synapses in (cell.synapses, cell.sensory):
            synapses.mu.data.uniform_(-1.0, 1.0)
            synapses.sigma.data.uniform_(1.0, 3.0)
    return Liquid([cell], 'linear', mlp(2 * features, features) if features else None)


class MappedGRU(GRU):
    """A GRU behind the same input mapping."""

    def __init__(self, units: int) -> None:
        super().__init__(units, with_dt=False)
        self.mapping = mlp(2 * FEATURES, FEATURES)
        self.cell = nn.GRUCell(FEATURES, units)

    def states(self, u: torch.Tensor, plan: torch.Tensor) -> torch.Tensor:
        return super().states(self.mapping(u), plan)


def big_cfc(units: int) -> Net:
    """Return the CfC at the sizes that ncps proposes, whatever its parameters count."""
    from ncps.torch import CfCCell

    net = CfC(32)
    net.cell = CfCCell(INPUTS, 32, backbone_units=128, backbone_layers=1)
    return net


VARIANTS = {
    'neural, the recipe': Contender(neural, 0.06, FINER),
    'neural, hold current': Contender(partial(neural, hold='current'), 0.06, FINER),
    'neural, hold previous': Contender(partial(neural, hold='previous'), 0.06, FINER),
    'neural, no input mapping': Contender(partial(neural, features=0), 0.06, FINER),
    'neural, linear readout': Contender(partial(neural, mlp_readout=False), 0.06, FINER),
    'neural, learning rate 0.01': Contender(neural, 0.01, FINER),
    'neural, no finer sub-steps': Contender(neural, 0.06),
    'neural, sub-steps of 0.05 s': Contender(partial(neural, max_step=0.05), 0.06),
    'neural, tau 0.02-2 s': Contender(partial(neural, tau_range=(0.02, 2.0)), 0.06, FINER),
    'neural, gate gain 0.2 at first': Contender(partial(neural, gain=0.2), 0.06, FINER),
    'neural, two layers': Contender(partial(neural, layers=2), 0.06, FINER),
    'neural, no input current': Contender(partial(neural, current=False), 0.06, FINER),
    'synaptic, the recipe': Contender(synaptic, 0.05, is_paced=True),
    'synaptic, all steps alike': Contender(synaptic, 0.05),
    'synaptic, no input mapping': Contender(partial(synaptic, features=0), 0.05, is_paced=True),
    'synaptic, learning rate 0.01': Contender(synaptic, 0.01, is_paced=True),
    'synaptic, finer sub-steps': Contender(synaptic, 0.05, FINER, is_paced=True),
    'synaptic, ranges for signed inputs': Contender(
        partial(synaptic, signed=True), 0.05, is_paced=True
    ),
    'synaptic, 26 units as the neural': Contender(partial(synaptic, fixed=26), 0.05, is_paced=True),
    'synaptic, 4 times the iterations': Contender(synaptic, 0.05, is_paced=True),
    'cfc, 32 units, backbone 128 (9 x parameters)': Contender(big_cfc, 0.005),
    'gru, input mapping': Contender(MappedGRU, 0.06),
    'gru, learning rate 0.01': Contender(partial(GRU, with_dt=False), 0.01),
}


def measure(name: str, iterations: int) -> list[dict[str, object]]:
    """Train one variant and return its rows."""
    torch.set_num_threads(1)
    iterations *= 4 if '4 times' in name else 1
    effort = rates.Effort(cpu_seconds=math.inf, iterations=iterations, seeds=(0, 1, 2))
    data = rates.Data.make(effort)
    nets, _, seconds = rates.train(VARIANTS[name], '10Hz', data, effort)
    found = {
        metric: [system.nmse(rates.predict(net, samples) * data.scale, samples.y) for net in nets]
        for metric, samples in data.tests.items()
        if metric in ('nmse@1Hz', 'nmse@5Hz', 'nmse@10Hz', 'nmse@100Hz')
    }
    flat = [a / b for a, b in zip(found['nmse@100Hz'], found['nmse@10Hz'], strict=True)]
    return [
        *(rates.row(name, metric, values) for metric, values in found.items()),
        rates.row(name, '100Hz/10Hz', flat),
        rates.row(name, 'CPU s', [seconds], 's'),
        rates.row(name, 'parameters', [exact_param_count(nets[0])]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--iterations', type=int, default=900, help='of each variant')
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--json', type=Path, help='write the figures to this file')
    options = parser.parse_args()
    jobs = [(name, options.iterations) for name in VARIANTS]
    with multiprocessing.get_context('spawn').Pool(options.processes) as pool:
        results = pool.starmap(measure, jobs, chunksize=1)
    metrics = [str(r['metric']) for r in results[0]]
    print(f'| variant | {" | ".join(metrics)} |')
    print('|---' * (len(metrics) + 1) + '|')
    for own in results:
        figures = ' | '.join(f'{r["value"]:.5g}' for r in own)
        print(f'| {own[0]["name"]} | {figures} |')
    if options.json:
        from lnn_ros.results import write_results

        command = f'python benchmarks/rates_ablation.py --iterations {options.iterations}'
        write_results(options.json, command, (0, 1, 2), [r for own in results for r in own])


if __name__ == '__main__':
    main()
