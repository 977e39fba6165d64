"""`lnn_ros bench core`: what a step, a callback, training and starting cost, beside the peers.

All contenders of a table take turns in one process, on one thread, so that a busy machine is busy
for all of them; a ratio of medians stands first, because it holds on other machines. Memory and
start are measured in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from lnn_ros.core import instructions
from lnn_ros.training import core_contenders as contenders
from lnn_ros.training.core_contenders import SIZES, Call

Row = dict[str, Any]

TARGETS = {
    ('step/ncp32', 'ratio_to_ncps'): 300.0,
    ('step/dense64', 'ratio_to_ncps'): 60.0,
    ('step/dense128', 'ratio_to_ncps'): 20.0,
    ('train/ncp32', 'ratio_to_ncps'): 30.0,
    ('train/dense64', 'ratio_to_ncps'): 9.0,
    ('train/ncp32', 'memory_ratio_to_ncps'): 20.0,
    ('train/dense64', 'memory_ratio_to_ncps'): 20.0,
    ('callback/64x48', 'ratio_to_ncps'): 20.0,
    ('start/controller', 's'): 0.3,
    ('start/controller', 'MB'): 60.0,
}
"""What is to be reached: ratios at least, seconds and megabytes at most."""

STARTS = {
    'controller': """
from lnn_ros import policy
from lnn_ros.controller import Controller
from lnn_ros.share import share_directory
Controller(policy.load(share_directory() / 'policies' / 'car.safetensors'))
""",
    'numpy': 'import numpy',
    'rclpy': 'import rclpy',
    'controller_node': 'import lnn_ros.nodes.controller_node',
    'torch and ncps': 'import torch, ncps.torch',
}
"""What is started: the controller with its policy loaded, and what to compare that with."""


@dataclass(frozen=True)
class Effort:
    """How long it measures.

    Attributes:
        rounds: turns of each contender.
        turn: seconds of one turn.
        compile: whether torch.compile takes part; it compiles for half a minute a network.
        batch, steps: of the training batch.
        starts: processes started for each figure of memory and starting.
        count: whether instructions are counted.
    """

    rounds: int = 20
    turn: float = 0.02
    compile: bool = True
    batch: int = 32
    steps: int = 32
    starts: int = 5
    count: bool = True


QUICK = Effort(rounds=2, turn=0.002, compile=False, batch=4, steps=4, starts=1, count=False)
"""Only enough to see that it runs."""


def run(effort: Effort) -> tuple[list[Row], bool]:
    """Measure and print everything; return the rows, and False if instructions have grown."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for size in SIZES:
        for name, unfolds in ((f'step/{size}', 6), (f'step/{size}/1 unfold', 1)):
            rows += _table(name, contenders.step(size, unfolds, effort.compile), effort)
    for width, height in ((64, 48), (640, 480)):
        rows += _table(f'callback/{width}x{height}', contenders.callback(width, height), effort)
    rows += _table('resize/640x480', contenders.resize(640, 480), effort)
    rows += _table('encoder/64x48', contenders.encoder(), effort)
    for size in ('ncp32', 'dense64'):
        calls = contenders.train(size, effort.batch, effort.steps)
        rows += _table(f'train/{size}', calls, effort)
        rows += _training_memory(size, list(calls), effort)
    torch.set_num_threads(threads)
    rows += _starts(effort)
    for who, why in contenders.absent.items():
        print(f'\nnot measured: {who}: {why}')
    good = True
    if effort.count:
        counted, good = _instructions()
        rows += counted
    _targets(rows)
    return rows, good


def _row(name: str, metric: str, values: Iterable[float], unit: str, n: int) -> Row:
    """Return the middle of some values, which lie between `low` and `high`."""
    found = sorted(values)
    return {
        'name': name,
        'metric': metric,
        'value': median(found),
        'low': found[0],
        'high': found[-1],
        'n': n,
        'unit': unit,
    }


def _interleaved(calls: dict[str, Call], effort: Effort) -> dict[str, list[Any]]:
    """Return, for each call, microseconds (p50, p99) of each of its turns."""
    counts = {}
    for who, call in calls.items():
        call()
        begun = time.perf_counter()
        for _ in range(3):
            call()
        took = (time.perf_counter() - begun) / 3
        counts[who] = max(1, int(effort.turn / max(took, 1e-6)))
    turns: dict[str, list[Any]] = {who: [] for who in calls}
    for _ in range(effort.rounds):
        for who, call in calls.items():
            taken = []
            for _ in range(counts[who]):
                begun_ns = time.perf_counter_ns()
                call()
                taken.append(time.perf_counter_ns() - begun_ns)
            turns[who].append(np.percentile(taken, (50, 99)) / 1000.0)
    return turns


def _table(name: str, calls: dict[str, Call], effort: Effort) -> list[Row]:
    """Measure and print one table; the first contender is the one that the others are held to."""
    rows: list[Row] = []
    turns = _interleaved(calls, effort)
    peer = next(iter(calls))
    print(f'\n{name:28}{"times faster":>14}{"p50, us":>12}{"p99, us":>12}')
    for who, own in turns.items():
        # turn by turn: what slows the machine down slows both down
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(turns[peer], own, strict=True)]
        label, n = (name if who == 'ours' else f'{name}/{who}'), effort.rounds
        new = [
            _row(label, f'ratio_to_{peer}', ratios, '1', n),
            _row(label, 'us_p50', (p50 for p50, _ in own), 'us', n),
            _row(label, 'us_p99', (p99 for _, p99 in own), 'us', n),
        ]
        ratio, p50, p99 = (row['value'] for row in new)
        print(f'  {who:26}{ratio:14.1f}{p50:12.2f}{p99:12.2f}', flush=True)
        rows += new
    return rows


_OF_CHILD = """
import ctypes
import re
import sys
import time

def memory(what):
    with open('/proc/self/status') as status:
        return int(re.search(what + r':\\s+(\\d+) kB', status.read())[1]) / 1024
"""

_TRAINING = """
import torch
from lnn_ros.training import core_contenders as contenders
who, size, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
contenders.train(size, 2, 2)[who]()
call = contenders.train(size, batch, steps)[who]
ctypes.CDLL(None).malloc_trim(0)  # what is free already would be used unseen
with open('/proc/self/clear_refs', 'w') as clear:
    clear.write('5')
before = memory('VmRSS')
call()
print(memory('VmHWM') - before)
"""

_STARTING = """
before, begun = memory('VmRSS'), time.perf_counter()
exec(sys.argv[1])
print(time.perf_counter() - begun, memory('VmRSS') - before)
"""


def _measure(script: str, *arguments: str) -> list[float]:
    """Return the numbers that a Python process of its own prints.

    Raises:
        RuntimeError: when it fails; the message is the last line of what it said.
    """
    with tempfile.TemporaryDirectory() as empty:  # python -c looks for modules where it stands
        done = subprocess.run(
            [sys.executable, '-c', _OF_CHILD + script, *arguments],
            cwd=empty,
            env=dict(os.environ, OPENBLAS_NUM_THREADS='1'),  # as the node's own
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or 'no message').splitlines()[-1])
    return [float(word) for word in done.stdout.split()]


def _training_memory(size: str, who: list[str], effort: Effort) -> list[Row]:
    """Return the memory that a training step takes on top of the network and its batch."""
    sizes = (size, str(effort.batch), str(effort.steps))
    taken = {
        name: [_measure(_TRAINING, name, *sizes)[0] for _ in range(min(effort.starts, 3))]
        for name in who
    }
    rows: list[Row] = []
    print(f'\n{f"train/{size}: extra memory":28}{"times less":>14}{"MB":>12}')
    least = 4096 / 2**20  # a page: less cannot be seen
    for name, own in taken.items():
        label = f'train/{size}' if name == 'ours' else f'train/{size}/{name}'
        ratios = [a / max(b, least) for a, b in zip(taken['ncps'], own, strict=True)]
        new = [
            _row(label, 'memory_ratio_to_ncps', ratios, '1', len(own)),
            _row(label, 'MB', own, 'MB', len(own)),
        ]
        print(f'  {name:26}{new[0]["value"]:14.1f}{new[1]["value"]:12.2f}', flush=True)
        rows += new
    return rows


def _starts(effort: Effort) -> list[Row]:
    """Return seconds and memory of what a robot starts, and of what it is spared."""
    rows: list[Row] = []
    print(f'\n{"start":28}{"s":>14}{"MB":>12}')
    for name, script in STARTS.items():
        try:
            found = [_measure(_STARTING, script) for _ in range(effort.starts)]
        except RuntimeError as error:  # rclpy is the only one that may be missing
            contenders.absent[f'start/{name}'] = str(error)
            continue
        new = [
            _row(f'start/{name}', unit, (run[i] for run in found), unit, len(found))
            for i, unit in enumerate(('s', 'MB'))
        ]
        print(f'  {name:26}{new[0]["value"]:14.3f}{new[1]["value"]:12.1f}', flush=True)
        rows += new
    return rows


def _instructions() -> tuple[list[Row], bool]:
    why = instructions.missing()
    if why:
        print(f'\nnot measured: instructions: {why}')
        return [], True
    rows: list[Row] = []
    good = True
    print(f'\n{"instructions":28}{"counted":>14}{"at most":>12}')
    for name, count in instructions.count().items():
        most = instructions.KNOWN[name] * 11 // 10
        good &= count <= most
        print(f'  {name:26}{count:14}{most:12}{"" if count <= most else "  TOO MANY"}')
        rows.append(_row(f'instructions/{name}', 'count', [count], '1', 1))
    return rows, good


def _targets(rows: list[Row]) -> None:
    """Print how what was measured stands to what is to be reached."""
    values = {(row['name'], row['metric']): row['value'] for row in rows}
    print(f'\n{"to reach":44}{"measured":>12}{"target":>10}')
    for (name, metric), target in TARGETS.items():
        value = values.get((name, metric))
        if value is None:
            continue
        at_least = 'ratio' in metric
        reached = value >= target if at_least else value <= target
        print(
            f'  {name + ", " + metric:42}{value:12.2f}{">=" if at_least else "<=":>4}{target:6g}'
            f'{"" if reached else "  NOT REACHED"}'
        )
