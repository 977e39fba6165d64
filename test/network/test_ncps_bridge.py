import math

import numpy as np
import pytest
import torch

from lnn_ros.core import open_engine
from lnn_ros.liquid.cells import SynapticLTC
from lnn_ros.liquid.ncps_bridge import from_ncps, to_ncps
from lnn_ros.liquid.policy_network import PolicyNetwork
from lnn_ros.liquid.sequence import unroll
from lnn_ros.liquid.solvers import Solver

ncps_torch = pytest.importorskip('ncps.torch')
ncps_wirings = pytest.importorskip('ncps.wirings')

INPUTS, STEPS = 3, 12
WIRINGS = {
    'fully connected': lambda: ncps_wirings.FullyConnected(7),
    'random': lambda: ncps_wirings.Random(9, 4, 0.6),
    'ncp': lambda: ncps_wirings.NCP(8, 5, 3, 4, 3, 4, 2),
    'auto ncp': lambda: ncps_wirings.AutoNCP(16, 3),
}


def theirs(wiring='auto ncp', seed=0, **options):
    """Return an LTC of ncps with every number changed, those of absent synapses too."""
    torch.manual_seed(seed)
    module = ncps_torch.LTC(INPUTS, WIRINGS[wiring](), **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if 'mask' not in name:
                parameter.add_(0.2 * torch.rand_like(parameter))
    return module


def sequence(batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(batch, STEPS, INPUTS, generator=generator)
    return u, 10.0 ** (2.0 * torch.rand(batch, STEPS, generator=generator) - 2.0)  # 10 ms to 1 s


def each_by_itself(module, u, dt):
    """Run ncps sample by sample: with more than one, its intervals go wrong."""
    with torch.no_grad():
        runs = [module(u[i : i + 1], timespans=dt[i : i + 1]) for i in range(len(u))]
    return torch.cat([run[0] for run in runs]), torch.cat([run[1] for run in runs])


@pytest.mark.parametrize('implicit', [True, False])
@pytest.mark.parametrize('wiring', WIRINGS)
def test_ltc_of_ncps_has_the_same_outputs_here(wiring, implicit):
    module = theirs(wiring, implicit_param_constraints=implicit)
    cell = from_ncps(module)
    u, _ = sequence(5)
    with torch.no_grad():
        expected, last = module(u)
        states = unroll(cell, u, 1.0, hold='current')
    torch.testing.assert_close(cell.read(states), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(states[:, -1], last, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0.01


@pytest.mark.parametrize('batch', [1, 4, 16])
def test_intervals_per_sample_are_those_of_ncps_one_sample_at_a_time(batch):
    module = theirs()
    cell = from_ncps(module)
    u, dt = sequence(batch)
    expected, last = each_by_itself(module, u, dt)
    with torch.no_grad():
        states = unroll(cell, u, dt, hold='current')
    torch.testing.assert_close(cell.read(states), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(states[:, -1], last, rtol=1e-6, atol=1e-6)


def test_ncps_itself_is_wrong_where_the_batch_is_as_large_as_the_cell():
    # what this library must not do, pinned so that a repair of ncps is noticed
    module = theirs()
    u, dt = sequence(batch=16)
    expected, _ = each_by_itself(module, u, dt)
    with torch.no_grad():
        assert (module(u, timespans=dt)[0] - expected).abs().max() > 1e-2
        with pytest.raises(RuntimeError):
            module(*sequence(5)[:1], timespans=sequence(5)[1])


@pytest.mark.parametrize('wiring', WIRINGS)
def test_cell_goes_to_ncps_and_back(wiring):
    cell = from_ncps(theirs(wiring))
    module = to_ncps(cell)
    u, _ = sequence(4)
    with torch.no_grad():
        torch.testing.assert_close(
            module(u)[0], cell.read(unroll(cell, u, 1.0, hold='current')), rtol=1e-6, atol=1e-6
        )
    again = from_ncps(module)
    for (name, one), other in zip(cell.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize('unfolds', [1, 6, 11])
def test_unfolds_come_along(unfolds):
    module = theirs(ode_unfolds=unfolds)
    cell = from_ncps(module)
    assert cell.solver == Solver('fused', max_step=math.inf, unfolds=unfolds)
    assert to_ncps(cell).rnn_cell._ode_unfolds == unfolds
    u, dt = sequence(1)
    with torch.no_grad():
        expected = module(u, timespans=dt)[0]
        ours = cell.read(unroll(cell, u, dt, hold='current'))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('mapping', [None, 'linear', 'affine'])
def test_maps_of_inputs_and_outputs_come_along(mapping):
    module = theirs(input_mapping=mapping, output_mapping=mapping)
    u, _ = sequence(3)
    with torch.no_grad():
        cell = from_ncps(module)
        torch.testing.assert_close(
            cell.read(unroll(cell, u, 1.0, hold='current')), module(u)[0], rtol=1e-6, atol=1e-6
        )


def test_cell_of_ncps_is_accepted_without_its_sequence():
    module = theirs()
    u, h = torch.rand(2, INPUTS), torch.rand(2, 16)
    with torch.no_grad():
        expected, state = module.rnn_cell(u, h, 0.3)
        cell = from_ncps(module.rnn_cell)
        ours = cell(u, h, 0.3)
    torch.testing.assert_close(ours, state, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cell.read(ours), expected, rtol=1e-6, atol=1e-6)


def test_weight_that_ncps_clipped_to_zero_is_taken():
    module = theirs(implicit_param_constraints=False)
    with torch.no_grad():
        module.rnn_cell.w[:, :8] = -1.0
        module.rnn_cell.gleak[2] = -1.0
    with pytest.raises(ValueError, match='is -1, must be greater than 0'):
        from_ncps(module)
    module.rnn_cell.apply_weight_constraints()
    u, _ = sequence(3)
    with torch.no_grad():
        cell = from_ncps(module)
        torch.testing.assert_close(
            cell.read(unroll(cell, u, 1.0, hold='current')), module(u)[0], rtol=1e-6, atol=1e-6
        )


def test_what_has_no_equal_on_the_other_side_is_refused():
    with pytest.raises(ValueError, match='mixed memory'):
        from_ncps(theirs(mixed_memory=True))
    cell = from_ncps(theirs())
    cell.solver = Solver('exact')
    with pytest.raises(ValueError, match='ncps has the solver fused with unfolds alone'):
        to_ncps(cell)


def test_ltc_of_ncps_runs_in_a_policy_without_torch(make_contract):
    module = theirs()
    cell = from_ncps(module)
    contract = make_contract(
        ('imu',), 'imu', cell='ltc_synaptic', units=16, motor_neurons=3, mapping=[INPUTS],
        solver='fused', unfolds=6, max_step=1e6, hold='current',
    )  # fmt: skip
    network = PolicyNetwork(contract, wiring=cell.wiring)
    network.cell = cell
    engine = open_engine(network.to_policy())
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((50, len(contract.imu.fields)), dtype=np.float32)
    dt = rng.uniform(0.001, 0.5, 50)
    with torch.no_grad():
        x = network.mapping(torch.from_numpy(samples))[None]
        expected, _ = module(x, timespans=torch.from_numpy(dt.astype(np.float32))[None])
        seen = torch.cat((expected[0], torch.from_numpy(samples)), dim=-1)
        raw = network.readout(seen).numpy()
    low, high = np.array([[o.min, o.max] for o in contract.outputs]).T
    for k in range(50):
        engine.hold_imu(samples[k])
        engine.advance(dt[k])
        wanted = (low + high) / 2 + raw[k] * (high - low) / 2
        np.testing.assert_allclose(engine.command(), wanted, atol=1e-5)


def test_ncps_wiring_makes_a_cell_and_what_is_none_is_refused():
    wiring = ncps_wirings.AutoNCP(12, 2)
    wiring.build(3)
    assert SynapticLTC(wiring).wiring.count > 0
    with pytest.raises(ValueError, match='no wiring, ours or of ncps'):
        SynapticLTC([1, 2])
    with pytest.raises(ValueError, match='epsilon is 0.01'):
        from_ncps(ncps_torch.LTC(3, wiring, epsilon=1e-2))
    with pytest.raises(ValueError, match='CfC is no LTC'):
        from_ncps(ncps_torch.CfC(3, 8))
