"""What `lnn_ros bench core` compares: the same work done by us, by torch with ncps, and by others.

Every contender of a table is a call without arguments on the same numbers, on one thread. A peer
that is not installed, or cannot do it, is left out, and `absent` says why.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ncps.torch import LTC
from ncps.wirings import AutoNCP, FullyConnected

from lnn_ros.controller import Controller, Settings
from lnn_ros.core import Engine, compiled_module
from lnn_ros.core.numpy_engine import NumpyEngine
from lnn_ros.core.view import NumpyResampler, Spans, View
from lnn_ros.liquid.cells import Cell, NeuralLTC
from lnn_ros.liquid.ncps_bridge import from_ncps
from lnn_ros.liquid.policy_network import PolicyNetwork
from lnn_ros.liquid.sequence import unroll
from lnn_ros.liquid.wiring import wiring_from_ncps
from lnn_ros.observation import ImageReader
from lnn_ros.policy import (
    IMU_FIELDS,
    Contract,
    ConvLayer,
    EncoderContract,
    ImageContract,
    ImuContract,
    OutputContract,
    Policy,
)

Call = Callable[[], object]
SIZES = {'ncp32': 32, 'dense64': 64, 'dense128': 128}
DT, MAX_STEP = 0.01, 0.05  # s
absent: dict[str, str] = {}
"""Contenders that are left out, and why."""


def contract(units: int, with_image: bool = False, unfolds: int = 0) -> Contract:
    """Return the contract of a policy for 64x48 images, or for the IMU alone.

    The cell is the neural form under the exact solver; with `unfolds`, the one of ncps.
    """
    layers = tuple(ConvLayer(channels, 3, 2, 1) for channels in (8, 16, 16, 16))
    return Contract(
        cell='ltc_synaptic' if unfolds else 'ltc_neural',
        units=units,
        motor_neurons=2 if unfolds else units,
        solver='fused' if unfolds else 'exact',
        max_step=1e3 if unfolds else MAX_STEP,
        unfolds=unfolds or 1,
        hold='current' if unfolds else 'linear',
        image=ImageContract(64, 48, 3, 0.0, 1.0, 0.45, 0.25, 0.25) if with_image else None,
        imu=None if with_image else ImuContract(IMU_FIELDS, (0.0,) * 6, (1.0,) * 6, 'base_link'),
        encoder=EncoderContract(layers, 24) if with_image else None,
        mapping=(),
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


def engines(policy: Policy) -> dict[str, Engine]:
    """Return our engines for `policy` by name; 'ours' is the one that a robot runs."""
    found: dict[str, Engine] = {}
    module = compiled_module()
    if module is None:
        absent['C'] = 'the compiled core is not there'
    else:
        from lnn_ros.core.compiled import CEngine

        found['ours'] = CEngine(policy, module)
        found['ours, baseline'] = CEngine(policy, module, 0)
    found['ours, numpy' if found else 'ours'] = NumpyEngine(policy)
    return found


def ncps(size: str, inputs: int, unfolds: int) -> LTC:
    """Return the LTC of ncps that stands beside our networks of a size."""
    units = SIZES[size]
    wiring = AutoNCP(units, 2) if size.startswith('ncp') else FullyConnected(units, 2)
    return LTC(inputs, wiring, ode_unfolds=unfolds)


def step(size: str, sub_steps: int, compile_them: bool) -> dict[str, Call]:
    """One step of 10 ms with a new sample, and the command read.

    `ours` is the very network of ncps (wiring, weights, unfolds); `ours, neural` is the other form
    with as many units, which needs one exact step where ncps takes its 6. Of ncps the bare cell is
    called, without autograd; its module, which is what its documentation calls, costs more.
    """
    whole = ncps(size, 6, sub_steps).eval()
    cell = whole.rnn_cell
    same = PolicyNetwork(
        contract(SIZES[size], unfolds=sub_steps), wiring=wiring_from_ncps(cell._wiring)
    )
    same.cell = from_ncps(cell)
    neural = PolicyNetwork(contract(SIZES[size]))
    values = np.random.default_rng(0).normal(size=6).astype(np.float32)

    def call_of(engine: Engine, dt: float) -> Call:
        def call() -> None:
            engine.hold_imu(values)
            engine.advance(dt)
            engine.command()

        return call

    u, h, elapsed = torch.from_numpy(values)[None], torch.zeros(1, SIZES[size]), torch.tensor(DT)

    def in_torch(module: Any) -> Call:
        def call() -> None:
            with torch.inference_mode():
                module(u, h, elapsed)

        return call

    sequence, intervals = u[:, None], torch.full((1, 1), DT)

    def documented() -> object:
        return whole(sequence, h, timespans=intervals)

    calls = {
        'ncps': in_torch(cell),
        'ncps, module': torch.inference_mode()(documented),
        'ncps, module, autograd': documented,
    }
    calls |= {who: call_of(engine, DT) for who, engine in engines(same.to_policy()).items()}
    fastest = engines(neural.to_policy())['ours']
    calls['ours, neural, 1 step'] = call_of(fastest, DT)
    if sub_steps > 1:
        many = engines(neural.to_policy())['ours']
        calls[f'ours, neural, {sub_steps} steps'] = call_of(many, MAX_STEP * (sub_steps - 0.5))
    session = onnx_session(cell, (u, h, elapsed))
    if session is not None:
        names = [given.name for given in session.get_inputs()]
        feed = dict(zip(names, (u.numpy(), h.numpy(), elapsed.numpy()), strict=True))
        calls['ncps, ONNX Runtime'] = lambda: session.run(None, feed)
    if compile_them:
        compiled = in_torch(torch.compile(cell))
        try:
            compiled()
            calls['ncps, torch.compile'] = compiled
        except Exception as error:  # whatever Inductor and the compiler behind it raise
            absent['torch.compile'] = f'it failed ({str(error).strip().splitlines()[0][:80]})'
    else:
        absent['torch.compile'] = '--quick leaves it out'
    return calls


def onnx_session(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> Any:
    """Return an ONNX Runtime session of a module, on one thread; None where it is not installed."""
    try:
        import onnx  # noqa: F401  torch's exporter needs it
        import onnxruntime
    except ImportError as error:
        absent['ONNX Runtime'] = f'pip install onnx onnxruntime ({error})'
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporter that needs no more packages is the older one
        file = Path(folder) / 'module.onnx'
        logging.disable(logging.WARNING)
        torch.onnx.export(module, arguments, file, dynamo=False)
        logging.disable(logging.NOTSET)
        return onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])


def encoder() -> dict[str, Call]:
    """From a normalised 64x48 image to 24 features: four convolutions and a linear layer."""
    network = PolicyNetwork(contract(32, True)).eval()
    assert network.encoder is not None
    pixels = np.random.default_rng(0).normal(size=(3, 48, 64)).astype(np.float32)
    batch = torch.from_numpy(pixels)[None]

    def of_torch() -> None:
        with torch.inference_mode():
            network.encode(batch)

    def call_of(engine: Engine) -> Call:
        return lambda: engine.hold_image(pixels)

    calls: dict[str, Call] = {'torch': of_torch}
    calls |= {who: call_of(engine) for who, engine in engines(network.to_policy()).items()}
    session = onnx_session(network.encoder, (batch,))
    if session is not None:
        feed = {session.get_inputs()[0].name: pixels[None]}
        calls['ONNX Runtime'] = lambda: session.run(None, feed)
    return calls


def resize(width: int, height: int) -> dict[str, Call]:
    """From a message's bytes to 64x48 by area, normalised; the others do not normalise."""
    spec = contract(32, True).image
    assert spec is not None
    data = np.random.default_rng(0).integers(0, 256, height * width * 3, dtype=np.uint8)
    image, reader = data.reshape(height, width, 3), ImageReader(spec)
    rows = Spans.area(height, 0.0, height, 48)
    columns = Spans.area(width, 0.0, width, 64)
    slow = NumpyResampler(View(rows, columns, width, np.eye(3) / 255.0, spec.mean, spec.scale))
    pixels = np.empty((3, 48, 64), dtype=np.float32)

    def of_torch() -> None:
        with torch.inference_mode():
            planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
            torch.nn.functional.adaptive_avg_pool2d(planes, (48, 64))

    calls: dict[str, Call] = {
        'torch': of_torch,
        'ours': lambda: reader.read(data, height, width, 'rgb8', 3 * width),
        'ours, numpy': lambda: slow.see(data, 3 * width, pixels),
    }
    try:
        import cv2
    except ImportError:
        absent['OpenCV'] = 'pip install opencv-python-headless'
        return calls
    cv2.setNumThreads(1)
    calls['OpenCV, area'] = lambda: cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)
    calls['OpenCV, linear'] = lambda: cv2.resize(image, (64, 48), interpolation=cv2.INTER_LINEAR)
    return calls


def callback(width: int, height: int) -> dict[str, Call]:
    """From an image's bytes to a limited command, as the node runs it.

    The peer does the same with the same network shapes: pixels to float, down to 64x48 by area,
    normalised, the encoder, and the bare cell of ncps with its default of 6 unfolds.
    """
    network = PolicyNetwork(contract(32, True)).eval()
    policy = network.to_policy()
    settings = Settings(max_age={'image': 1.0, 'imu': 1.0}, warmup_steps=0)
    data = bytearray(np.random.default_rng(0).integers(0, 256, height * width * 3, dtype=np.uint8))

    def controlled(engine: Engine) -> Call:
        controller = Controller(policy, settings, engine)
        stamps = iter(range(10**9, 10**18, 10**7))
        return lambda: controller.on_image(data, height, width, 'rgb8', 3 * width, next(stamps))

    cell = ncps('ncp32', 25, 6).rnn_cell.eval()
    h, dt, age = torch.zeros(1, 32), torch.tensor(DT), torch.zeros(1, 1)

    def of_torch() -> None:
        with torch.inference_mode():
            image = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(height, width, 3))
            pixels = image.permute(2, 0, 1)[None].float() / 255.0
            if (width, height) != (64, 48):
                pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, (48, 64))
            features = network.encode((pixels - 0.45) / 0.25)
            output, _ = cell(torch.cat((features, age), 1), h, dt)
            np.clip(output.numpy(), -1.0, 1.0)

    return {'ncps': of_torch} | {who: controlled(e) for who, e in engines(policy).items()}


def train(size: str, batch: int, steps: int) -> dict[str, Call]:
    """Forward and backward over a batch of sequences: the gradient of a mean square.

    `ours` is the very network of ncps (wiring, weights, 6 unfolds of the fused solver);
    `ours, neural` is the other form with as many units, which a policy holds.
    """
    theirs = ncps(size, 6, 6)
    u = torch.randn(batch, steps, 6, generator=torch.Generator().manual_seed(0))

    def of_ncps() -> None:
        theirs.zero_grad()
        # at its one second a step: a batch with intervals (batch, steps) it cannot run
        theirs(u)[0].square().mean().backward()

    def call_of(cell: Cell, hold: str) -> Call:
        def call() -> None:
            cell.zero_grad()
            cell.read(unroll(cell, u, DT, hold=hold))[..., :2].square().mean().backward()

        return call

    return {
        'ncps': of_ncps,
        'ours': call_of(from_ncps(theirs), 'current'),
        'ours, neural': call_of(NeuralLTC(6, SIZES[size]), 'linear'),
    }
