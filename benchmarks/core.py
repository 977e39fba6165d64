"""What a policy step, an encoder and a whole callback cost, beside torch, ncps and numpy.

    pip install torch==2.13.0 ncps
    python benchmarks/core.py [--json FILE]

Everything runs interleaved in one process on one thread; figures are the median over all calls, and
the ratio to ncps's torch modules in eager mode stands first: it holds on other machines, times do
not. Where valgrind is installed, instructions are counted too, and the exit code is 1 when one of
them has grown by more than a tenth over what is written down here.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ncps.torch import LTC
from ncps.wirings import AutoNCP, FullyConnected

from lnn_ros.controller import Controller, Settings
from lnn_ros.core import build, compiled_module
from lnn_ros.core.compiled import CEngine
from lnn_ros.core.numpy_engine import NumpyEngine
from lnn_ros.core.view import NumpyResampler, Spans, View
from lnn_ros.liquid.policy_network import PolicyNetwork
from lnn_ros.observation import ImageReader
from lnn_ros.policy import (
    IMU_FIELDS,
    Contract,
    ConvLayer,
    EncoderContract,
    ImageContract,
    ImuContract,
    OutputContract,
)

HERE = Path(__file__).parent
SOURCES = HERE.parent / 'lnn_ros' / 'core'
SIZES = {'ncp32': 32, 'dense64': 64, 'dense128': 128}
# x86-64-v3, gcc 12; (what, units): instructions per call
INSTRUCTIONS = {
    ('step', 32): 1_300,
    ('step', 64): 2_720,
    ('step', 128): 7_280,
    ('encode', 32): 258_000,
    ('image', 0): 725_000,
}
Call = Callable[[], object]


def contract(units: int, with_image: bool) -> Contract:
    """Return the contract of a policy for 64x48 images, or for the IMU alone."""
    layers = tuple(ConvLayer(channels, 3, 2, 1) for channels in (8, 16, 16, 16))
    return Contract(
        cell='ltc_neural',
        units=units,
        solver='exact',
        max_step=0.05,
        hold='previous',
        image=ImageContract(64, 48, 3, 0.0, 1.0, 0.45, 0.25, 0.25) if with_image else None,
        imu=None if with_image else ImuContract(IMU_FIELDS, (0.0,) * 6, (1.0,) * 6, 'base_link'),
        encoder=EncoderContract(layers, 24) if with_image else None,
        readout=(),
        outputs=(
            OutputContract('linear.x', 'm/s', 0.0, 2.0, 4.0, 0.0),
            OutputContract('angular.z', 'rad/s', -3.0, 3.0, 20.0, 0.0),
        ),
        trigger='image' if with_image else 'imu',
        dt_range=(0.001, 0.1),
        task='bench',
        provenance={},
    )


def interleaved(calls: dict[str, Call], rounds: int, budget: float = 0.02) -> dict[str, Any]:
    """Return microseconds (p50, p99) per call; every round runs each for about `budget` s."""
    taken: dict[str, list[int]] = {name: [] for name in calls}
    counts = {}
    for name, call in calls.items():
        begun = time.perf_counter()
        for _ in range(3):
            call()
        counts[name] = max(1, int(budget / max((time.perf_counter() - begun) / 3, 1e-6)))
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(counts[name]):
                begun_ns = time.perf_counter_ns()
                call()
                taken[name].append(time.perf_counter_ns() - begun_ns)
    return {name: np.percentile(ns, (50, 99)) / 1000.0 for name, ns in taken.items()}


def step_calls(units: int) -> dict[str, Call]:
    """Hold a sample, advance 10 ms, and read the command; 6 sub-steps as in ncps beside it."""
    policy = PolicyNetwork(contract(units, False)).to_policy()
    values = np.random.default_rng(0).normal(size=6).astype(np.float32)

    def call_of(engine: CEngine | NumpyEngine, dt: float) -> Call:
        def call() -> None:
            engine.hold_imu(values)
            engine.advance(dt)
            engine.command()

        return call

    wiring = AutoNCP(units, 2) if units == 32 else FullyConnected(units, 2)
    cell = LTC(6, wiring).rnn_cell.eval()
    u, h, dt = torch.from_numpy(values)[None], torch.zeros(1, units), torch.tensor(0.01)

    def of_ncps() -> None:
        with torch.inference_mode():
            cell(u, h, dt)

    return {
        'ncps': of_ncps,
        'C': call_of(CEngine(policy, compiled_module()), 0.01),
        'C, 6 sub-steps': call_of(CEngine(policy, compiled_module()), 0.3),
        'C, baseline x86-64': call_of(CEngine(policy, compiled_module(), 0), 0.01),
        'numpy': call_of(NumpyEngine(policy), 0.01),
    }


def callback_calls(width: int, height: int) -> dict[str, Call]:
    """From an image's bytes to a limited command, as the node runs it, beside torch and ncps."""
    network = PolicyNetwork(contract(32, True)).eval()
    policy = network.to_policy()
    settings = Settings(max_age={'image': 1.0, 'imu': 1.0}, warmup_steps=0)
    data = bytearray(np.random.default_rng(0).integers(0, 256, height * width * 3, dtype=np.uint8))

    def controlled(engine: CEngine | NumpyEngine) -> Call:
        controller = Controller(policy, settings, engine)
        stamps = iter(range(10**9, 10**18, 10**7))

        def call() -> None:
            controller.on_image(data, height, width, 'rgb8', 3 * width, next(stamps))

        return call

    cell = LTC(25, AutoNCP(32, 2)).rnn_cell.eval()
    h, dt, age = torch.zeros(1, 32), torch.tensor(0.01), torch.zeros(1, 1)

    def of_torch() -> None:
        with torch.inference_mode():
            image = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(height, width, 3))
            pixels = image.permute(2, 0, 1)[None].float() / 255.0
            if (width, height) != (64, 48):
                pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, (48, 64))
            features = network.encode((pixels - 0.45) / 0.25)
            output, _ = cell(torch.cat((features, age), 1), h, dt)
            np.clip(output.numpy(), -1.0, 1.0)

    return {'ncps': of_torch, 'C': controlled(CEngine(policy, compiled_module()))}


def encoder_calls() -> dict[str, Call]:
    """Encode a 64x48 image."""
    network = PolicyNetwork(contract(32, True)).eval()
    policy = network.to_policy()
    pixels = np.random.default_rng(0).normal(size=(3, 48, 64)).astype(np.float32)
    batch = torch.from_numpy(pixels)[None]
    fast, slow = CEngine(policy, compiled_module()), NumpyEngine(policy)

    def of_torch() -> None:
        with torch.inference_mode():
            network.encode(batch)

    return {
        'torch': of_torch,
        'C': lambda: fast.hold_image(pixels),
        'numpy': lambda: slow.hold_image(pixels),
    }


def resize_calls() -> dict[str, Call]:
    """640x480 to 64x48 by area and normalised, beside OpenCV's resize where it is installed."""
    spec = contract(32, True).image
    assert spec is not None
    data = np.random.default_rng(0).integers(0, 256, 640 * 480 * 3, dtype=np.uint8)
    reader = ImageReader(spec)
    image = data.reshape(480, 640, 3)
    rows, columns = Spans.area(480, 0.0, 480.0, 48), Spans.area(640, 0.0, 640.0, 64)
    slow = NumpyResampler(View(rows, columns, 640, np.eye(3) / 255.0, spec.mean, spec.scale))
    pixels = np.empty((3, 48, 64), dtype=np.float32)

    def of_torch() -> None:
        with torch.inference_mode():
            planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
            torch.nn.functional.adaptive_avg_pool2d(planes, (48, 64))

    calls: dict[str, Call] = {
        'torch': of_torch,
        'C': lambda: reader.read(data, 480, 640, 'rgb8', 1920),
        'numpy': lambda: slow.see(data, 1920, pixels),
    }
    try:
        import cv2
    except ImportError:
        return calls
    cv2.setNumThreads(1)
    for name in ('INTER_AREA', 'INTER_LINEAR'):
        how = getattr(cv2, name)
        calls[f'cv2 {name}'] = lambda how=how: cv2.resize(image, (64, 48), interpolation=how)
    return calls


def instructions() -> Iterator[tuple[str, int, int, int]]:
    """Yield (what, units, instructions per call, what they may be)."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / 'core_steps'
        flags = [f for f in build.FLAGS if f != '-fvisibility=hidden']
        sources = [HERE / 'core_steps.c', *(SOURCES / name for name in build.SOURCES)]
        command = ['gcc', *flags, '-D_POSIX_C_SOURCE=200112L', f'-I{SOURCES}', *sources, '-lm']
        subprocess.run([*command, '-o', program], check=True)
        for (what, units), known in INSTRUCTIONS.items():
            few, many = (100, 1100) if what == 'step' else (2, 12)
            counted = []
            for count in (few, many):
                valgrind = ['valgrind', '--tool=callgrind', '--callgrind-out-file=/dev/null']
                done = subprocess.run(
                    [*valgrind, program, what, str(max(units, 1)), str(count)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                line = next(line for line in done.stderr.splitlines() if 'Collected' in line)
                counted.append(int(line.split()[-1]))
            yield what, units, (counted[1] - counted[0]) // (many - few), known * 11 // 10


def main() -> int:
    """Print the tables; return 1 when a call takes more instructions than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', type=Path, help='write the figures here, too')
    parser.add_argument('--rounds', type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []

    def add(name: str, metric: str, value: float, unit: str, n: int = 1) -> None:
        rows.append(
            {'name': name, 'metric': metric, 'value': value, 'low': value, 'high': value}
            | {'n': n, 'unit': unit}
        )

    tables = {f'step/{name}': (step_calls(units), 'ncps') for name, units in SIZES.items()}
    tables |= {
        f'callback/{w}x{h}': (callback_calls(w, h), 'ncps') for w, h in ((64, 48), (640, 480))
    }
    tables |= {'encoder/64x48': (encoder_calls(), 'torch')}
    tables |= {'resize/640x480': (resize_calls(), 'torch')}
    for name, (calls, peer) in tables.items():
        figures = interleaved(calls, arguments.rounds)
        print(f'\n{name:22}{"ratio":>8}{"p50, us":>10}{"p99, us":>10}')
        for who, (p50, p99) in figures.items():
            ratio = figures[peer][0] / p50
            print(f'  {who:20}{ratio:8.1f}{p50:10.2f}{p99:10.2f}')
            label = name if who == 'C' else f'{name}/{who}'
            add(label, f'ratio_to_{peer}', ratio, '1', arguments.rounds)
            add(label, 'us_p50', p50, 'us', arguments.rounds)
            add(label, 'us_p99', p99, 'us', arguments.rounds)

    good = True
    if shutil.which('valgrind') and platform.machine() == 'x86_64':
        print(f'\n{"instructions":22}{"counted":>10}{"at most":>10}')
        for what, units, count, most in instructions():
            good &= count <= most
            label = f'{what}/{units}' if what == 'step' else what
            print(f'  {label:20}{count:10}{most:10}{"" if count <= most else "  TOO MANY"}')
            add(f'instructions/{label}', 'count', count, '1')
    if arguments.json:
        document = {
            'command': 'bench core',
            'version': version('lnn_ros'),
            'date': date.today().isoformat(),
            'machine': f'{platform.machine()}, {platform.processor() or platform.platform()}',
            'seeds': [0],
            'rows': rows,
        }
        arguments.json.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
