from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

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


@pytest.fixture
def random_policy() -> Callable[..., Policy]:
    return _random_policy


def _random_policy(
    units: int = 32,
    image: tuple[int, int, int] | None = (3, 18, 32),  # channels, height, width
    layers: tuple[tuple[int, int, int, int], ...] = ((8, 3, 2, 1), (16, 3, 2, 1), (16, 3, 2, 1)),
    imu: int = 6,
    readout: tuple[int, ...] = (40, 16),
    seed: int = 0,
) -> Policy:
    """Return a policy with random weights; layers are (channels, kernel, stride, padding)."""
    sides = {} if image is None else dict(zip(('channels', 'height', 'width'), image, strict=True))
    contract = Contract(
        cell='ltc_neural',
        units=units,
        solver='exact',
        max_step=0.05,
        hold='previous',
        image=ImageContract(
            **sides, crop_top=0.25, crop_bottom=1.0, mean=0.45, scale=0.25, age_scale=0.25
        )
        if image
        else None,
        imu=ImuContract(IMU_FIELDS[:imu], (0.1,) * imu, (3.0,) * imu, 'base_link') if imu else None,
        encoder=EncoderContract(tuple(ConvLayer(*layer) for layer in layers), 24)
        if image
        else None,
        readout=readout,
        outputs=(
            OutputContract('linear.x', 'm/s', 0.0, 2.0, 4.0, 0.0),
            OutputContract('angular.z', 'rad/s', -3.0, 3.0, 20.0, 0.0),
        ),
        trigger='imu' if imu else 'image',
        dt_range=(0.001, 0.1),
        task='car',
        provenance={},
    )
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 4.0
        tensors[name] = (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)

    inputs = contract.inputs
    if contract.encoder:
        shapes = contract.encoder_shapes
        for i, layer in enumerate(contract.encoder.layers):
            add(f'encoder.{2 * i}.weight', layer.channels, shapes[i][0], layer.kernel, layer.kernel)
            add(f'encoder.{2 * i}.bias', layer.channels)
        last = 2 * len(contract.encoder.layers) + 1
        add(f'encoder.{last}.weight', 24, int(np.prod(shapes[-1])))
        add(f'encoder.{last}.bias', 24)
    add('cell.gate_input', units, inputs)
    add('cell.drive', units, inputs)
    add('cell.gate_recurrent', units, units)
    for name in ('gate_bias', 'log_gain', 'reversal', 'leak'):
        add(f'cell.{name}', units)
    tensors['cell.log_tau'] = np.log(rng.uniform(0.02, 2.0, units)).astype(np.float32)
    sizes = (units + inputs, *readout, 2)
    for i in range(len(sizes) - 1):
        add(f'readout.{2 * i}.weight', sizes[i + 1], sizes[i])
        add(f'readout.{2 * i}.bias', sizes[i + 1])
    return Policy(contract, tensors)
