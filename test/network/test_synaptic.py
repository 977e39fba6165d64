import math

import numpy as np
import pytest
import torch

from lnn_ros.liquid.cells import NeuralLTC, SynapticLTC, assign
from lnn_ros.liquid.sequence import unroll
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import AutoNCP, FullyConnected, Wiring


def softplus(x):
    return np.log1p(np.exp(x))


def derivative(cell, u, v):
    """Return dv/dt of one sample in numpy, synapse by synapse as in the docstring."""
    p = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    gl, cm = softplus(p['raw_gl']), softplus(p['raw_cm'])
    current = gl * (p['vl'] - v)
    for prefix, x in (('synapses.', v), ('sensory.', p['input_w'] * u + p['input_b'])):
        signs = cell.wiring.synapses if prefix == 'synapses.' else cell.wiring.sensory
        for k, (before, after) in enumerate(np.argwhere(signs)):
            w, sigma, mu, erev = (p[prefix + n][k] for n in ('raw_w', 'sigma', 'mu', 'erev'))
            s = 1.0 / (1.0 + np.exp(-sigma * (x[before] - mu)))
            current[after] += softplus(w) * s * (erev - v[after])
    return current / cm


def test_field_is_the_equation_of_the_docstring(make_cell):
    cell = make_cell('synaptic')
    u, v = torch.rand(5, 3).double(), torch.randn(5, 7).double()
    with torch.no_grad():
        rate, equilibrium = cell.field(cell.driven_by(u), v)
    ours = (rate * (equilibrium - v)).numpy()
    theirs = [derivative(cell, *sample) for sample in zip(u.numpy(), v.numpy(), strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_there_are_parameters_for_real_synapses_and_no_others():
    # ncps trains 4590 numbers for the same 142 synapses
    wiring = AutoNCP(inputs=3, units=32, outputs=4)
    assert wiring.count == 142
    cell = SynapticLTC(wiring)
    sizes = {name: parameter.numel() for name, parameter in cell.named_parameters()}
    per_synapse = [sizes[f'{k}.{n}'] for k in ('synapses', 'sensory') for n in ('raw_w', 'erev')]
    assert per_synapse == [116, 116, 26, 26]
    assert sum(sizes.values()) == 4 * 142 + 3 * 32 + 2 * 3 + 2 * 4


def test_all_parameters_take_part(make_cell):
    cell = make_cell('synaptic')
    u, v = torch.rand(40, 3).double(), torch.rand(40, 7).double()
    cell.read(cell(u, cell(u, v, 0.3), 0.3)).square().sum().backward()
    for name, parameter in cell.named_parameters():
        assert (parameter.grad != 0.0).all(), name


@pytest.mark.parametrize('name', ['fused', 'exact', 'euler'])
def test_state_once_within_its_bounds_never_leaves_them(name):
    """AAAI 2021, theorem 2, for wild parameters, inputs and intervals."""
    torch.manual_seed(0)
    cell = SynapticLTC(AutoNCP(5, 20, 3), solver=Solver(name, max_steps=1_000_000)).double()
    with torch.no_grad():
        for synapses in (cell.synapses, cell.sensory):
            synapses.raw_w.uniform_(-5.0, 5.0)
            synapses.erev.normal_(0.0, 3.0)
            synapses.sigma.normal_(0.0, 20.0)
        cell.vl.normal_(0.0, 2.0)
        cell.raw_cm.uniform_(-3.0, 3.0)
        low, high = cell.bounds()
        assert (low < high).any()
        v = low + (high - low) * torch.rand(64, 20).double()
        reached = torch.zeros(20)
        for _ in range(30):
            dt = 10.0 ** (3.0 * torch.rand(64).double() - 2.5)  # 3 ms to 3 s
            v = cell(10.0 * torch.randn(64, 5).double(), v, dt)
            assert ((v >= low - 1e-9) & (v <= high + 1e-9)).all()
            reached = torch.maximum(reached, ((v - low) / (high - low)).amax(dim=0))
    assert reached.max() > 0.9  # the bound is not an idle one


def test_state_outside_its_bounds_comes_back(make_cell):
    cell = make_cell('synaptic')
    low, high = cell.bounds()
    with torch.no_grad():
        v = cell(torch.rand(8, 3).double(), torch.full((8, 7), 40.0).double(), 40.0)
    assert ((v >= low - 1e-6) & (v <= high + 1e-6)).all()


def test_conductances_and_capacitances_stay_positive_whatever_the_optimiser_does(make_cell):
    # ncps asks its user to apply constraints after each step
    cell = make_cell('synaptic')
    optimiser = torch.optim.SGD(cell.parameters(), lr=5.0)
    u, v = torch.rand(8, 3).double(), torch.rand(8, 7).double()
    for _ in range(20):
        optimiser.zero_grad()
        (cell(u, v, 0.1) + 3.0).square().sum().backward()
        optimiser.step()
    with torch.no_grad():
        rate, equilibrium = cell.field(cell.driven_by(u), v)
    assert (rate > 0.0).all() and torch.isfinite(equilibrium).all()


def test_time_constants_start_out_log_uniform_over_their_range():
    """With all synapses half open, which is where sigmoid(sigma (x - mu)) is at x = mu."""
    torch.manual_seed(0)
    cell = SynapticLTC(FullyConnected(2, 60), tau_range=(0.01, 5.0)).double()
    with torch.no_grad():
        for synapses in (cell.synapses, cell.sensory):
            synapses.mu.fill_(0.5)
        logs = cell.time_constant(torch.full((2,), 0.5).double(), torch.full((60,), 0.5).double())
        logs = logs.log().numpy()
    low, high = math.log(0.01), math.log(5.0)
    assert low - 1e-5 <= logs.min() < low + 0.8 and high - 0.8 < logs.max() <= high + 1e-5
    assert np.median(logs) == pytest.approx((low + high) / 2, abs=0.8)


def test_physical_values_can_be_assigned_and_a_negative_one_cannot(make_cell):
    cell = make_cell('synaptic')
    assign(cell, cm=torch.full((7,), 1e-6), vl=torch.full((7,), -2.0))
    torch.testing.assert_close(torch.nn.functional.softplus(cell.raw_cm)[0].item(), 1e-6)
    assert (cell.vl == -2.0).all()
    with pytest.raises(ValueError, match='gl is -0.1, must be greater than 0'):
        assign(cell, gl=torch.tensor([1.0, -0.1, 1.0, 1.0, 1.0, 1.0, 1.0]))


# What a LiquidCell cannot do, since neither its rate nor its equilibrium knows the state.


def two_neurons(solver):
    """Return a neuron that excites itself and a slow one that it excites and that inhibits it."""
    cell = SynapticLTC(Wiring([[1, 1], [-1, 0]], [[0, 0]], outputs=1), solver=solver).double()
    # synapses 0 -> 0, 0 -> 1, 1 -> 0
    assign(
        cell.synapses,
        w=torch.tensor([8.0, 4.0, 6.0]),
        sigma=torch.full((3,), 12.0),
        mu=torch.full((3,), 0.5),
        erev=torch.tensor([1.0, 1.0, -0.5]),
    )
    assign(cell, gl=torch.ones(2), vl=torch.tensor([0.4, 0.0]), cm=torch.tensor([0.5, 5.0]))
    return cell


@pytest.mark.parametrize('solver', [Solver(max_step=0.01), Solver('rk4'), Solver('fused', 0.005)])
def test_two_neurons_oscillate_on_one_limit_cycle_under_a_constant_input(solver):
    cell = two_neurons(solver)
    starts = torch.tensor([[0.0, 0.0], [0.9, 0.1], [0.4, 0.4]]).double()
    with torch.no_grad():
        v = unroll(cell, torch.zeros(3, 500, 1).double(), 0.05, starts)[:, 100:, 0]
    assert (v.amax(dim=1) - v.amin(dim=1) > 0.9).all()
    upward = (v[:, :-1] < 0.4) & (v[:, 1:] >= 0.4)
    for sample in upward:
        periods = sample.nonzero().flatten().diff() * 0.05
        assert len(periods) >= 3
        np.testing.assert_allclose(periods, 4.2, rtol=0.05)


def test_one_self_exciting_neuron_remembers_which_side_it_was_put_on():
    cell = SynapticLTC(Wiring([[1]], [[1]], outputs=1)).double()
    assign(
        cell.synapses,
        w=torch.tensor([4.0]),
        sigma=torch.tensor([10.0]),
        mu=torch.tensor([0.5]),
        erev=torch.tensor([1.0]),
    )
    assign(
        cell.sensory,
        w=torch.tensor([2.0]),
        sigma=torch.tensor([20.0]),
        mu=torch.tensor([0.5]),
        erev=torch.tensor([1.0]),
    )
    assign(cell, gl=torch.ones(1), vl=torch.zeros(1), cm=torch.tensor([0.3]))
    quiet, pulse = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    with torch.no_grad():
        low = cell(quiet, torch.zeros(1, 1).double(), 20.0)
        high = cell(quiet, cell(pulse, low, 1.0), 20.0)
        assert float(low) < 0.1 and float(high) > 0.7
        # both are rest states: nothing changes in another 20 s
        torch.testing.assert_close(cell(quiet, low, 20.0), low, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(cell(quiet, high, 20.0), high, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize('form', ['synaptic', 'neural'])
def test_measured_time_constant_changes_with_the_input(form):
    """Let the state decay and time it: the liquid time constant, not a formula for it."""
    if form == 'synaptic':
        cell = SynapticLTC(Wiring([[0]], [[1]], outputs=1), solver=Solver('dopri5')).double()
        assign(
            cell.sensory,
            w=torch.tensor([9.0]),
            sigma=torch.tensor([20.0]),
            mu=torch.tensor([0.5]),
            erev=torch.tensor([1.0]),
        )
        assign(cell, gl=torch.ones(1), vl=torch.zeros(1), cm=torch.ones(1))
    else:
        cell = NeuralLTC(1, 1, (1.0, 1.0), Solver('dopri5')).double()
        with torch.no_grad():
            cell.gate_input.fill_(20.0)
            cell.gate_bias.fill_(-10.0)
            cell.gate_recurrent.zero_()
            cell.log_gain.fill_(math.log(9.0))

    def measured(u):
        u = torch.full((2, 1), u).double()
        h = torch.tensor([[0.0], [1.0]]).double()
        with torch.no_grad():
            h = cell(u, h, 0.01)
        # two states under the same input approach one another with the time constant
        return -0.01 / math.log(float(h[1] - h[0]))

    assert measured(0.0) == pytest.approx(1.0, rel=2e-3)
    assert measured(1.0) == pytest.approx(0.1, rel=2e-3)
    assert measured(0.5) == pytest.approx(1.0 / 5.5, rel=2e-3)


def test_all_parameters_have_the_default_type():
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        cell = SynapticLTC(AutoNCP(3, 8, 2))
    finally:
        torch.set_default_dtype(default)
    assert {p.dtype for p in cell.parameters()} == {torch.float64}
