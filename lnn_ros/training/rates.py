"""The benchmark `lnn_ros bench rates`: networks at sampling rates that they did not train at.

Three things, in one run, of our cells and of their peers (see `known_system` for the task):

    (a) random weights: how far the outputs for 1 and 10 Hz samplings of a signal are from 100 Hz
    (b) split steps: one step against the same time in several, and a step of almost no time
    (c) trained at 10 Hz, or at jittered intervals: the error at 1 ... 100 Hz and jittered

In (c) every net has the same readout, a parameter count within 5 % of 2500 and the same CPU time to
train in, its seeds side by side; the learning rate is the best of those tried for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from lnn_ros.liquid.cells import LiquidCell, NeuralLTC, SynapticLTC
from lnn_ros.liquid.network import exact_param_count
from lnn_ros.liquid.solvers import SOLVERS, Solver
from lnn_ros.liquid.wiring import FullyConnected
from lnn_ros.training import known_system as system
from lnn_ros.training.rate_nets import GRU, INPUTS, CfC, Liquid, Net, matched, mlp
from lnn_ros.training.side_by_side import SideBySide

log = logging.getLogger(__name__)

RATES = (1, 2, 5, 10, 50, 100)
REGIMES = ('10Hz', 'jittered')
"""Training at fixed 10 Hz, or at log-uniform intervals of 10 ms ... 1 s."""
PARAMETERS = 2500
TAU_RANGE = (0.05, 5.0)
MAX_STEP = 0.1
FINER = (1, 3)
"""Finer sub-steps in some batches keep a liquid net from fitting the error of its own solver, which
is another at other rates."""
FEATURES = 8


@dataclass(frozen=True)
class Contender:
    """A net to compare.

    Attributes:
        make: makes it with a number of units.
        learning_rate: of Adam.
        finer: least sub-steps of an interval in the second half, batch by batch in turn.
        is_paced: whether synapses' numbers take longer steps, see `pace.paced`.
        needs_ncps: whether it is one of ncps's own.
    """

    make: Callable[[int], Net]
    learning_rate: float
    finer: tuple[int, ...] = (1,)
    is_paced: bool = False
    needs_ncps: bool = False

    def units(self) -> int:
        """Return the number of units that brings it to PARAMETERS."""
        return matched(self.make, PARAMETERS)


def neural(units: int) -> Net:
    """Return the recipe that docs/rates.md arrives at."""
    cell = NeuralLTC(FEATURES, units, TAU_RANGE, Solver('exact', MAX_STEP))
    return Liquid([cell], 'linear', mlp(2 * FEATURES, FEATURES))


def synaptic(units: int) -> Net:
    cell = _synapses(FEATURES, units, Solver('exact', MAX_STEP))
    return Liquid([cell], 'linear', mlp(2 * FEATURES, FEATURES))


def liquid_cell(units: int) -> Net:
    return Liquid([LiquidCell(INPUTS, units, Solver('exact', MAX_STEP))], 'linear')


def ncps_ltc(units: int) -> Net:
    """Return the LTC of ncps: the synaptic form with its ranges, solver and hold.

    Ours stands in for it, since torch.vmap cannot reach the parameters that ncps holds twice;
    test/network/test_ncps_bridge.py holds the two to equal outputs.
    """
    cell = _synapses(INPUTS, units, Solver('fused', math.inf, unfolds=6))
    cell.raw_cm.data.uniform_(0.4, 0.6).expm1_().log_()  # its cm, through the inverse of softplus
    return Liquid([cell], 'current')


def _synapses(inputs: int, units: int, solver: Solver) -> SynapticLTC:
    cell = SynapticLTC(FullyConnected(inputs, units), TAU_RANGE, solver)
    # the readout sees all states and scales them itself
    cell.output_w.requires_grad_(False)
    cell.output_b.requires_grad_(False)
    return cell


CONTENDERS = {
    'neural': Contender(neural, 0.06, FINER),
    'synaptic': Contender(synaptic, 0.05, is_paced=True),
    'liquid_cell': Contender(liquid_cell, 0.06),
    'ncps_ltc': Contender(ncps_ltc, 0.1),
    'ncps_cfc': Contender(CfC, 0.008, needs_ncps=True),
    'gru': Contender(lambda units: GRU(units, with_dt=False), 0.1),
    'gru_dt': Contender(lambda units: GRU(units, with_dt=True), 0.1),
}


@dataclass(frozen=True)
class Effort:
    """How much is computed.

    Attributes:
        recordings, tests: how many signals of `duration` seconds to train and to test on.
        batch: sequences of a training step, of each seed.
        duration, span: seconds of a recording, of a sequence at a fixed rate.
        jittered_steps: samples of a jittered sequence.
        cpu_seconds: to train all seeds of a net, in one regime.
        iterations: at most.
        seeds: of initial weights and of the order of the training data.
    """

    recordings: int = 512
    tests: int = 64
    batch: int = 32
    duration: float = 20.0
    span: float = 12.0
    jittered_steps: int = 64
    cpu_seconds: float = 60.0
    iterations: int = 1_000_000
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


QUICK = Effort(8, 2, 4, 4.0, 2.0, 4, 60.0, 2, (0, 1))


@dataclass
class Data:
    """Training and test signals; outputs are divided by `scale` for the nets."""

    u: Tensor
    y: Tensor
    scale: np.ndarray[Any, Any]
    tests: dict[str, system.Samples]

    @classmethod
    def make(cls, effort: Effort) -> Data:
        """Record both; their seeds are always the same."""
        train = system.record(effort.recordings, effort.duration, seed=1)
        test = system.record(effort.tests, effort.duration, seed=2)
        scale = train.y.std(axis=(0, 1))
        return cls(
            torch.tensor(train.u, dtype=torch.float32),
            torch.tensor(train.y / scale, dtype=torch.float32),
            scale,
            {name: system.sample(test, ticks) for name, ticks in stamps(effort).items()},
        )


def stamps(effort: Effort) -> dict[str, system.Ticks]:
    """Return when the test signals are sampled, by the name of the metric."""
    ticks = {f'nmse@{r}Hz': system.every(r, effort.span, effort.tests) for r in RATES}
    rng = np.random.default_rng(3)
    ticks['nmse@jitter'] = system.jittered(
        effort.tests, effort.jittered_steps, effort.duration, rng
    )
    return ticks


def predict(net: Net, samples: system.Samples) -> system.Array:
    """Return a net's outputs, as they leave its readout, (count, steps, 4)."""
    u = torch.tensor(samples.u, dtype=torch.float32).transpose(0, 1)
    dt = torch.tensor(samples.dt, dtype=torch.float32).T
    with torch.no_grad():
        return net(u, net.plan(dt)).transpose(0, 1).double().numpy()


def train(
    contender: Contender, regime: str, data: Data, effort: Effort
) -> tuple[list[Net], int, float]:
    """Train all seeds side by side; return the nets, the iterations and the CPU seconds.

    Adam with a learning rate that rises over the first twentieth and falls to 0 along a cosine, on
    the squared error of scaled outputs; gradients are clipped to norm 1. The schedule goes by CPU
    time, so that every net has as long as any other, or by iterations if they are up before it.
    """
    units = contender.units()
    nets = []
    for seed in effort.seeds:
        torch.manual_seed(seed)
        nets.append(contender.make(units))
    together = SideBySide(list(nets), mse_loss, contender.is_paced)
    begun, iteration = time.process_time(), 0
    for u, y, dt in _batches(regime, data, effort):
        done = max(
            (time.process_time() - begun) / effort.cpu_seconds, iteration / effort.iterations
        )
        if done >= 1.0:
            break
        learning_rate = contender.learning_rate * schedule(done)
        # a half of the training is enough for it, and the coarse half is cheaper
        finer = contender.finer[iteration % len(contender.finer)] if done > 0.5 else 1
        plan = nets[0].plan(dt, finer)
        together.step(learning_rate, u, y, plan)
        iteration += 1
    for i, net in enumerate(nets):
        net.load_state_dict(together.state(i))
    return nets, iteration, time.process_time() - begun


def schedule(done: float) -> float:
    """Return the factor on a learning rate at a share 0 ... 1 of the training."""
    return min(done / 0.05, 1.0) * (0.5 + 0.5 * math.cos(math.pi * done))


def _batches(regime: str, data: Data, effort: Effort) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield u and y (seeds, steps, batch, ...), a draw for each seed, and dt (steps, batch)."""
    draws = [np.random.default_rng((seed, 4)) for seed in effort.seeds]
    for_stamps = np.random.default_rng(5)
    while True:
        if regime == '10Hz':
            ticks = system.every(10, effort.span, effort.batch)
        else:
            ticks = system.jittered(
                effort.batch, effort.jittered_steps, effort.duration, for_stamps
            )
        dt = np.diff(ticks, axis=1, prepend=0).T * system.GRID
        rows = np.stack([rng.integers(0, len(data.u), (1, effort.batch)) for rng in draws])
        place = (torch.tensor(rows), torch.tensor(ticks.T).unsqueeze(0))
        yield data.u[place], data.y[place], torch.tensor(dt, dtype=torch.float32)


def row(name: str, metric: str, values: Sequence[float], unit: str = '1') -> dict[str, Any]:
    """Return one flat row of a result file: mean, least and largest of the values."""
    return {
        'name': name,
        'metric': metric,
        'value': float(np.mean(values)),
        'low': float(np.min(values)),
        'high': float(np.max(values)),
        'n': len(values),
        'unit': unit,
    }


def trained(name: str, regime: str, effort: Effort) -> list[dict[str, Any]]:
    """Train one net in one regime and return its rows."""
    torch.set_num_threads(1)
    data = Data.make(effort)
    nets, iterations, seconds = train(CONTENDERS[name], regime, data, effort)
    label = f'{name}/{regime}'
    rows = [
        row(
            label,
            metric,
            [system.nmse(predict(net, samples) * data.scale, samples.y) for net in nets],
        )
        for metric, samples in data.tests.items()
    ]
    return [
        *rows,
        row(label, 'iterations', [iterations]),
        row(label, 'cpu_per_seed', [seconds / len(nets)], 's'),
        row(label, 'parameters', [exact_param_count(nets[0])]),
    ]


def floors(effort: Effort) -> list[dict[str, Any]]:
    """Return what the system itself misses if it is given the samples and a hold."""
    test = system.record(effort.tests, effort.duration, seed=2)
    return [
        row(
            f'system/{hold}',
            metric,
            [system.nmse(system.held(test, ticks, hold), system.sample(test, ticks).y)],
        )
        for hold in ('current', 'linear')
        for metric, ticks in stamps(effort).items()
    ]


def contenders() -> list[str]:
    """Return the nets that can be run here: those of ncps only where it is installed."""
    ncps = importlib.util.find_spec('ncps') is not None
    if not ncps:
        log.warning('ncps is not installed (pip install ncps): its CfC is left out')
    return [name for name, c in CONTENDERS.items() if ncps or not c.needs_ncps]


def random_weights(effort: Effort) -> list[dict[str, Any]]:
    """Return (a) and (b), of all nets and, for our cells, of all solvers."""
    test = system.record(min(effort.tests, 16), effort.duration, seed=2)
    rows = []
    for name in contenders():
        nets: list[Any] = []
        for seed in effort.seeds:
            torch.manual_seed(seed)
            nets.append(CONTENDERS[name].make(CONTENDERS[name].units()))
        rows += _untrained(name, nets, test, effort.span)
        if name in ('neural', 'synaptic', 'liquid_cell'):
            for solver in SOLVERS[1:]:
                for net in nets:
                    for cell in net.cells:
                        cell.solver = dataclasses.replace(cell.solver, name=solver)
                rows += _untrained(f'{name}:{solver}', nets[:1], test, effort.span)
    return rows


def _untrained(
    name: str, nets: list[Net], test: system.Recording, span: float
) -> list[dict[str, Any]]:
    count = len(test.u)
    at = {r: system.sample(test, system.every(r, span, count)) for r in (1, 10, 100)}
    found: dict[str, list[float]] = {}

    def note(metric: str, difference: Any, scale: Any) -> None:
        value = math.sqrt(float((difference**2).mean())) / float(scale.std())
        found.setdefault(metric, []).append(value)

    for net in nets:
        y = {r: predict(net, samples)[:, r - 1 :: r] for r, samples in at.items()}
        for r in (1, 10):
            note(f'divergence@{r}Hz', y[r] - y[100], y[100])
        start = _after(net, at[10], [])
        for metric, whole, parts in (
            ('split@0.1s', [0.1], [0.01] * 10),
            ('split@2s', [2.0], [1.0] * 2),
        ):
            after = _after(net, at[10], parts)
            note(metric, _after(net, at[10], whole) - after, after)
        note('jump@0s', _after(net, at[10], [1e-6]) - start, start)
    return [row(name, metric, values) for metric, values in found.items()]


def _after(net: Net, samples: system.Samples, steps: list[float]) -> Tensor:
    """Return the state 2 s into a 10 Hz sequence and then `steps` under the last input."""
    u = torch.tensor(samples.u[:, :20], dtype=torch.float32).transpose(0, 1)
    dt = torch.tensor(samples.dt[:, :20], dtype=torch.float32).T
    more = torch.tensor(steps, dtype=torch.float32).reshape(-1, 1)
    u = torch.cat((u, u[-1:].expand(len(steps), -1, -1)))
    dt = torch.cat((dt, more.expand(-1, dt.shape[1])))
    with torch.no_grad():
        return net.states(u, net.plan(dt))[-1]


def run(effort: Effort, processes: int = 1) -> list[dict[str, Any]]:
    """Return all rows."""
    rows = [*floors(effort), *random_weights(effort)]
    jobs = [(name, regime, effort) for regime in REGIMES for name in contenders()]
    # spawned, since a forked torch may wait for threads that it has not got
    pool = multiprocessing.get_context('spawn').Pool(processes) if processes > 1 else None
    with pool or contextlib.nullcontext():
        for part in pool.imap(_job, jobs) if pool else map(_job, jobs):
            figures = (f'{r["metric"].removeprefix("nmse@")} {r["value"]:.2g}' for r in part)
            log.info('%s: %s', part[0]['name'], ', '.join(figures))
            rows += part
    return rows


def _job(job: tuple[str, str, Effort]) -> list[dict[str, Any]]:
    return trained(*job)
