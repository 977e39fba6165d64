"""Both engines against the torch network that they stand in for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lnn_ros.policy
from lnn_ros.liquid.policy_network import PolicyNetwork
from lnn_ros.share import share_directory


@pytest.fixture(scope='module')
def policy() -> lnn_ros.policy.Policy:
    return lnn_ros.policy.load(Path(share_directory()) / 'policies' / 'car.safetensors')


def test_engine_equals_torch_over_ten_thousand_irregular_steps(policy, new_engine) -> None:
    contract = policy.contract
    engine, network = new_engine(policy), PolicyNetwork.from_policy(policy)
    rng = np.random.default_rng(3)
    frames = rng.normal(size=(500, 3, 18, 32)).astype(np.float32)
    imu = rng.normal(size=(10_001, 6)).astype(np.float32)
    age = rng.uniform(0.0, 0.3, 10_001)
    dt = (10.0 ** rng.uniform(-4, -0.4, 10_000)).astype(np.float32)
    of_step = np.minimum(np.arange(10_001) // 20, 499)  # a frame every 20 messages
    with torch.no_grad():
        features = network.encode(torch.from_numpy(frames)).numpy()[of_step]
        scaled_age = (age / contract.image.age_scale).astype(np.float32)[:, None]
        inputs = torch.from_numpy(np.concatenate((features, scaled_age, imu), axis=1))
        start = torch.zeros(1, contract.units)
        raw, last = network(inputs[:, None], torch.from_numpy(dt)[:, None], start)
    low, high = (np.array([getattr(o, end) for o in contract.outputs]) for end in ('min', 'max'))
    expected = raw[:, 0].numpy() * (high - low) / 2 + (high + low) / 2

    commands = np.empty((10_000, len(contract.outputs)), dtype=np.float32)
    for k in range(10_001):
        if k == 0 or of_step[k] != of_step[k - 1]:
            engine.hold_image(frames[of_step[k]])
        engine.hold_image_age(age[k])
        engine.hold_imu(imu[k])
        if k == 0:
            engine.jump()
        else:
            engine.advance(float(dt[k - 1]))
            commands[k - 1] = engine.command()
    assert np.abs(engine.state - last[0].numpy()).max() < 1e-5
    assert np.abs(commands - expected).max() < 1e-5
