import dataclasses

import numpy as np
import pytest
import torch

from lnn_ros import policy as policy_file
from lnn_ros.core.numpy_engine import sub_steps
from lnn_ros.liquid.policy_network import PolicyNetwork
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import AutoNCP
from lnn_ros.policy import HOLDS
from lnn_ros.share import share_directory

KINDS = {
    'image and imu': (('image', 'imu'), 'imu', 3),
    'imu only': (('imu',), 'imu', 3),
    'mono image only': (('image',), 'image', 1),
}
CELLS = {
    'ncp': {'cell': 'ltc_synaptic', 'units': 12, 'motor_neurons': 3},
    'fused ncp': {
        **{'cell': 'ltc_synaptic', 'units': 12, 'motor_neurons': 3},
        **{'solver': 'fused', 'unfolds': 6, 'hold': 'current'},
    },
    'liquid': {'cell': 'liquid'},
    'liquid, previous': {'cell': 'liquid', 'hold': 'previous'},
}
BATCH, STEPS = 50, 200  # sequences side by side: 10,000 steps
torch.set_num_threads(1)  # a second one only costs, at these sizes


@pytest.fixture(scope='module', params=[*KINDS, *CELLS, 'shipped'])
def policy(request, make_contract, make_policy):
    if request.param == 'shipped':
        return policy_file.load(share_directory() / 'policies' / 'car.safetensors')
    if request.param in CELLS:
        torch.manual_seed(0)
        contract = make_contract(('imu',), 'imu', **CELLS[request.param])
        wiring = AutoNCP(4, 12, 3) if contract.cell == 'ltc_synaptic' else None
        return PolicyNetwork(contract, wiring=wiring).to_policy()
    return make_policy(make_contract(*KINDS[request.param]), seed=3)


def irregular_steps(rng):
    """Return dt (STEPS, BATCH) in s: 1 ms to 0.5 s, whole sub-steps, and late messages' zeros."""
    dt = np.exp(rng.uniform(np.log(0.001), np.log(0.5), (STEPS, BATCH)))
    whole = rng.random(dt.shape) < 0.1
    dt[whole] = 0.05 * rng.integers(1, 11, dt.shape)[whole]
    dt[rng.random(dt.shape) < 0.2] = 0.0
    return dt


def test_engine_equals_the_torch_network_over_irregular_steps(policy, new_engine):
    rng = np.random.default_rng(0)
    contract = policy.contract
    dt = irregular_steps(rng)
    frames = is_new = index = ages = imu = None
    parts = []
    if contract.image:  # held for about five messages each
        shape = (contract.image.channels, contract.image.height, contract.image.width)
        frames = rng.standard_normal((20, *shape), dtype=np.float32)
        is_new = rng.random((STEPS + 1, BATCH)) < 0.2
        is_new[0] = True
        fresh = rng.integers(0, len(frames), is_new.shape)
        index = fresh.copy()
        for k in range(1, STEPS + 1):
            index[k] = np.where(is_new[k], fresh[k], index[k - 1])
        ages = rng.uniform(0.0, 0.3, is_new.shape).astype(np.float32)
    if contract.imu:
        imu = rng.standard_normal((STEPS + 1, BATCH, len(contract.imu.fields)), dtype=np.float32)

    network = PolicyNetwork.from_policy(policy)
    with torch.no_grad():
        if contract.image:
            features = network.encode(torch.from_numpy(frames))[torch.from_numpy(index)]
            age = torch.from_numpy(ages / np.float32(contract.image.age_scale))
            parts += [features, age[..., None]]
        if contract.imu:
            parts.append(torch.from_numpy(imu))
        inputs = torch.cat(parts, dim=-1)
        start = torch.zeros(BATCH, contract.units)
        raw, last = network(inputs, torch.from_numpy(dt.astype(np.float32)), start)

    engine = new_engine(policy)
    ours, ours_last = np.empty(raw.shape), np.empty(last.shape)
    middle = np.array([(o.max + o.min) / 2 for o in contract.outputs])
    half = np.array([(o.max - o.min) / 2 for o in contract.outputs])

    def hold(k, b):
        if frames is not None:
            if is_new[k, b]:
                engine.hold_image(frames[index[k, b]])
            engine.hold_image_age(float(ages[k, b]))
        if imu is not None:
            engine.hold_imu(imu[k, b])

    for b in range(BATCH):
        engine.reset()
        hold(0, b)
        engine.jump()
        for k in range(STEPS):
            hold(k + 1, b)
            engine.advance(dt[k, b]) if dt[k, b] > 0.0 else engine.jump()
            ours[k, b] = (engine.command() - middle) / half
        ours_last[b] = engine.state
    np.testing.assert_allclose(ours, raw.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours_last, last.numpy(), atol=1e-5)
    assert ours.std() > 0.1 and ours_last.std() > 0.1  # something went on


class Counting:
    """A field that stands still and counts how often it is asked."""

    state_dependent = True

    def __init__(self):
        self.calls = 0

    def field(self, driven, h):
        self.calls += 1
        return torch.ones_like(h), h


@pytest.mark.parametrize('max_step', [0.05, 0.03, 0.007, 0.1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_whole_number_of_sub_steps_is_that_number_in_every_precision(max_step, dtype):
    solver = Solver('exact', max_step)
    for number in range(1, 60):
        cell, dt = Counting(), torch.full((1, 1), number * max_step, dtype=dtype)
        solver.advance(cell, torch.zeros(1, 1), torch.zeros(1, 1), dt)
        assert cell.calls == number == sub_steps(number * max_step, max_step)
        assert sub_steps(number * max_step * 1.00001, max_step) == number + 1


def test_row_without_time_changes_the_readout_alone(policy):
    torch.manual_seed(0)
    network = PolicyNetwork.from_policy(policy)
    inputs = torch.randn(2, 4, policy.contract.inputs)
    h = torch.randn(4, policy.contract.units)
    with torch.no_grad():
        raw, after = network(inputs, torch.zeros(1, 4), h)
        torch.testing.assert_close(after, h, rtol=0.0, atol=1e-6)
        expected = network.readout(torch.cat((network.cell.read(h), inputs[1]), dim=-1))
    torch.testing.assert_close(raw[0], expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize('hold', HOLDS)
def test_inputs_act_over_an_interval_as_the_hold_says(make_contract, make_policy, hold):
    contract = make_contract(('imu',), 'imu', hold=hold)
    network = PolicyNetwork.from_policy(make_policy(contract))
    start, end, other = torch.randn(3, 1, contract.inputs)
    h, dt = torch.zeros(1, contract.units), torch.full((1, 1), 0.1)

    def state(first, last):
        return network(torch.stack((first, last)), dt, h)[1]

    with torch.no_grad():
        assert torch.equal(state(start, end), state(other, end)) == (hold == 'current')
        assert torch.equal(state(start, end), state(start, other)) == (hold == 'previous')
        torch.testing.assert_close(state(end, end), network.cell(network.mapping(end), h, dt[0]))


def test_network_gives_back_the_policy_that_it_was_made_from(policy):
    again = PolicyNetwork.from_policy(policy).to_policy()
    assert again.contract == policy.contract
    assert again.tensors.keys() == policy.tensors.keys()
    for name, tensor in again.tensors.items():
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, policy.tensors[name])


def test_untrained_network_can_be_saved_and_run(policy, tmp_path, new_engine):
    torch.manual_seed(0)
    fresh = PolicyNetwork(policy.contract, tau_range=(0.03, 0.3)).to_policy()
    if policy.contract.cell == 'ltc_neural':
        taus = np.exp(fresh.tensors['cell.log_tau'])
        assert taus.min() >= 0.0299 and taus.max() <= 0.3001
    policy_file.save(fresh, tmp_path / 'fresh.safetensors')
    engine = new_engine(policy_file.load(tmp_path / 'fresh.safetensors'))
    engine.advance(0.1)
    assert np.isfinite(engine.command()).all()


def test_contract_of_a_saved_network_can_be_replaced(policy):
    network = PolicyNetwork.from_policy(policy)
    other = dataclasses.replace(policy.contract, provenance={'round': 2})
    assert network.to_policy(other).contract.provenance == {'round': 2}


@pytest.mark.parametrize('bad', [-1e-6, np.nan, np.inf])
def test_network_refuses_an_interval_that_is_no_duration(policy, bad):
    network = PolicyNetwork.from_policy(policy)
    dt = torch.tensor([[0.1, bad]])
    with pytest.raises(ValueError, match='every dt must be finite and not negative'):
        network(
            torch.zeros(2, 2, policy.contract.inputs), dt, torch.zeros(2, policy.contract.units)
        )


@pytest.mark.parametrize('bad', [np.nan, -np.inf])
@pytest.mark.parametrize('row', [0, 1])
def test_network_refuses_inputs_that_are_not_finite(policy, bad, row):
    network = PolicyNetwork.from_policy(policy)
    inputs = torch.zeros(2, 1, policy.contract.inputs)
    inputs[row, 0, 1] = bad
    with pytest.raises(ValueError, match='not finite'):
        network(inputs, torch.ones(1, 1), torch.zeros(1, policy.contract.units))


@pytest.mark.parametrize('bad', [0.0, -0.01, np.nan, np.inf, -np.inf])
def test_engine_refuses_a_bad_interval_and_keeps_its_state(policy, bad, new_engine):
    engine = new_engine(policy)
    engine.advance(0.1)
    before = engine.state.tobytes()
    with pytest.raises(ValueError, match='must be finite and greater than 0 s'):
        engine.advance(bad)
    assert engine.state.tobytes() == before


def test_engine_keeps_what_it_holds_through_a_reset(policy, new_engine):
    rng = np.random.default_rng(0)
    engine = new_engine(policy)
    if policy.contract.image:
        image = policy.contract.image
        shape = (image.channels, image.height, image.width)
        engine.hold_image(rng.standard_normal(shape, dtype=np.float32))
        engine.hold_image_age(0.1)
    if policy.contract.imu:
        engine.hold_imu(rng.standard_normal(len(policy.contract.imu.fields), dtype=np.float32))
    engine.advance(0.1)
    first = engine.state.copy(), engine.command().copy()
    engine.reset()
    assert not engine.state.any()
    engine.advance(0.1)
    assert np.array_equal(engine.state, first[0])
    assert np.array_equal(engine.command(), first[1])


def test_image_of_another_shape_is_refused(policy, new_engine):
    if policy.contract.image is None:
        with pytest.raises(ValueError, match='takes no image'):
            new_engine(policy).hold_image(np.zeros((3, 6, 8), np.float32))
        with pytest.raises(ValueError, match='takes no image'):
            PolicyNetwork.from_policy(policy).encode(torch.zeros(1, 3, 6, 8))
    else:
        with pytest.raises(ValueError, match='image has shape'):
            new_engine(policy).hold_image(np.zeros((2, 6, 8), np.float32))
