"""Half-Cheetah, table 6 of the LTC paper: predict the next frame of a simulated runner.

    python benchmarks/half_cheetah.py FOLDER [--json FILE] [--epochs N]

FOLDER holds the 31 traces (1000, 17) of github.com/raminmh/liquid_time_constant_networks,
trace_0000.npy ... trace_0030.npy. The split is the paper's: files sorted by name, 0-4 validation,
5-14 test, 15-24 training; windows of 32 frames, every 10. The figure is the mean squared error over
all 17 numbers, in the units of the traces, of the test windows at the epoch that validated best.
Published (Hasani et al. 2021), mean and sd of 5: LTC 2.308 +- 0.015, LSTM 2.500 +- 0.140.

All nets here have 32 units, one linear readout of [state, frame], inputs and outputs scaled by the
training data, the same epochs, batches and schedule. A frame is 0.05 s, as in the simulator. Inputs
are clipped to the range of the training data: the validation traces hold a frame 57 standard
deviations out, which would otherwise choose the epoch all by itself. A linear model gets 3.43.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lnn_ros.liquid.cells import NeuralLTC, SynapticLTC
from lnn_ros.liquid.network import exact_param_count
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import FullyConnected
from lnn_ros.training.rate_nets import GRU, Liquid, Net
from lnn_ros.training.rates import row, schedule
from lnn_ros.training.side_by_side import SideBySide

UNITS, SIZE, WINDOW, STRIDE, BATCH = 32, 17, 32, 10, 32
FRAME = 0.05
SEEDS = range(5)
VALIDATION, TEST, TRAINING = slice(0, 5), slice(5, 15), slice(15, 25)


def windows(files: list[Path]) -> Tensor:
    """Return (frames, windows, 17), one frame more than WINDOW: the target of the last."""
    cut = []
    for file in files:
        trace = np.load(file).astype(np.float32)
        starts = range(0, len(trace) - WINDOW - 1, STRIDE)
        cut += [trace[s : s + WINDOW + 1] for s in starts]
    return torch.tensor(np.stack(cut, axis=1))


class LSTM(Net):
    """Hochreiter and Schmidhuber 1997, as in torch."""

    def __init__(self, units: int, inputs: int, readout: nn.Module) -> None:
        super().__init__(units, readout)
        self.cell = nn.LSTMCell(inputs, units)

    def states(self, u: Tensor, plan: Tensor) -> Tensor:
        cell, states = self.cell, []
        inputs = linear(u, cell.weight_ih, cell.bias_ih + cell.bias_hh)
        h = c = u.new_zeros(u.shape[1], cell.hidden_size)
        for now in inputs.unbind():
            entry, forget, new, out = (now + linear(h, cell.weight_hh)).chunk(4, dim=-1)
            c = torch.sigmoid(forget) * c + torch.sigmoid(entry) * torch.tanh(new)
            h = torch.sigmoid(out) * torch.tanh(c)
            states.append(h)
        return torch.stack(states)


def readout() -> nn.Module:
    return nn.Linear(UNITS + SIZE, SIZE)


def synaptic() -> Net:
    cell = SynapticLTC(FullyConnected(SIZE, UNITS), (0.02, 2.0), Solver('exact', FRAME))
    cell.output_w.requires_grad_(False)  # the readout scales the states itself
    cell.output_b.requires_grad_(False)
    return Liquid([cell], 'current', readout=readout())


def neural() -> Net:
    cell = NeuralLTC(SIZE, UNITS, (0.02, 2.0), Solver('exact', FRAME))
    return Liquid([cell], 'current', readout=readout())


NETS: dict[str, tuple[Callable[[], Net], float]] = {
    'neural_ltc': (neural, 0.01),
    'gru': (lambda: GRU(UNITS, False, SIZE, readout()), 0.01),
    'lstm': (lambda: LSTM(UNITS, SIZE, readout()), 0.01),
    'synaptic_ltc': (synaptic, 0.02),
}
"""How to make each, and its learning rate."""


def fit(
    make: Callable[[], Net], learning_rate: float, folder: Path, epochs: int
) -> tuple[list[float], int]:
    """Train one net with all seeds; return their test errors and its parameter count."""
    files = sorted(folder.glob('*.npy'))
    if len(files) < 25:
        raise SystemExit(f'{folder} has {len(files)} .npy files, the split needs 25 or more')
    train, valid, test = (windows(files[part]) for part in (TRAINING, VALIDATION, TEST))
    mean, sd = train.mean(dim=(0, 1)), train.std(dim=(0, 1))
    low, high = train.amin(dim=(0, 1)), train.amax(dim=(0, 1))

    def scaled(frames: Tensor) -> Tensor:
        return (frames.clamp(low, high) - mean) / sd

    def error(predicted: Tensor, y: Tensor) -> Tensor:
        return ((predicted * sd + mean - y) ** 2).mean()

    nets = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        nets.append(make())
    together = SideBySide(list(nets), error, is_paced=True)

    def plan(count: int) -> object:
        return nets[0].plan(torch.full((WINDOW, count), FRAME))

    def errors(data: Tensor) -> Tensor:
        u = scaled(data[:-1]).expand(len(nets), -1, -1, -1)
        with torch.no_grad():
            return together.losses(u, data[1:].expand_as(u), plan(data.shape[1]))

    draws = [np.random.default_rng(seed) for seed in SEEDS]
    steps = train.shape[1] // BATCH
    best, kept = torch.full((len(nets),), torch.inf), torch.zeros(len(nets))
    for epoch in range(epochs):
        order = torch.tensor(np.stack([rng.permutation(train.shape[1]) for rng in draws]))
        for k in range(steps):
            chosen = order[:, k * BATCH : (k + 1) * BATCH]
            data = train[:, chosen].transpose(0, 1)
            done = (epoch * steps + k) / (epochs * steps)
            u, y = scaled(data[:, :-1]), data[:, 1:]
            together.step(learning_rate * schedule(done), u, y, plan(BATCH))
        now = errors(valid)
        better = now < best
        best = torch.where(better, now, best)
        if bool(better.any()):
            kept = torch.where(better, errors(test), kept)
    return kept.tolist(), exact_param_count(nets[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('folder', type=Path, help='the traces')
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--json', type=Path, help='write the figures to this file')
    options = parser.parse_args()
    torch.set_num_threads(1)
    print('| net, 32 units | parameters | test error, mean of 5 | sd | CPU s for 5 |')
    print('|---|---|---|---|---|')
    rows = []
    for name, (make, learning_rate) in NETS.items():
        begun = time.process_time()
        found, count = fit(make, learning_rate, options.folder, options.epochs)
        seconds = time.process_time() - begun
        mean, sd = np.mean(found), np.std(found, ddof=1)
        print(f'| {name} | {count} | {mean:.3f} | {sd:.3f} | {seconds:.0f} |', flush=True)
        rows += [row(name, 'mse', found), row(name, 'parameters', [count])]
    if options.json:
        from lnn_ros.results import write_results

        command = f'python benchmarks/half_cheetah.py FOLDER --epochs {options.epochs}'
        write_results(options.json, command, list(SEEDS), rows)


if __name__ == '__main__':
    main()
