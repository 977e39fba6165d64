import itertools
import math

import pytest
import torch

from lnn_ros.liquid.cells import NeuralLTC
from lnn_ros.liquid.sequence import HOLDS, unroll
from lnn_ros.liquid.solvers import SOLVERS, IntegrationError, Solver

ORDERS = {'exact': 1, 'fused': 1, 'euler': 1, 'midpoint': 2, 'rk4': 4, 'dopri5': 5}


def inputs(batch, seed=1, size=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, size, generator=generator, dtype=torch.float64)


def states(batch, seed=2, size=7):
    return inputs(batch, seed, size) - 0.5


def solution(cell, u, h, dt, start=None, steps=500):
    """Integrate the field by Runge-Kutta written out here, in steps far below every tau."""
    start, step = u if start is None else start, dt / steps

    def slope(h, fraction):
        rate, equilibrium = cell.field(cell.driven_by(start + fraction * (u - start)), h)
        return rate * (equilibrium - h)

    with torch.no_grad():
        for i in range(steps):
            k1 = slope(h, i / steps)
            k2 = slope(h + step / 2 * k1, (i + 0.5) / steps)
            k3 = slope(h + step / 2 * k2, (i + 0.5) / steps)
            k4 = slope(h + step * k3, (i + 1) / steps)
            h = h + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return h


@pytest.mark.parametrize('ramp', [False, True])
@pytest.mark.parametrize('name', ORDERS)
def test_solver_converges_to_the_solution_in_its_order(name, ramp, kind, make_cell):
    cell = make_cell(kind)
    u, h = inputs(4), states(4)
    start = inputs(4, seed=5) if ramp else None
    reference = solution(cell, u, h, 0.4, start)
    errors = []
    for unfolds in (40, 80):
        # dopri5 accepts whatever comes out: its sub-steps are as long as those of the others
        cell.solver = Solver(name, max_step=math.inf, unfolds=unfolds, rtol=1e9)
        with torch.no_grad():
            errors.append(float((cell(u, h, 0.4, start) - reference).abs().max()))
    if name == 'exact' and kind == 'liquid':
        # the true solution; under a ramp, one that is frozen at the middle: of second order
        assert errors[0] < (1e-4 if ramp else 1e-12)
        order = 2
    else:
        order = ORDERS[name]
    assert errors[0] < {1: 0.05, 2: 2e-3, 4: 1e-5, 5: 1e-6}[order]
    if errors[1] > 1e-11:
        assert errors[0] / errors[1] == pytest.approx(2.0**order, rel=0.3)


@pytest.mark.parametrize('ramp', [False, True])
def test_dopri5_keeps_to_its_tolerance(ramp, kind, make_cell):
    cell = make_cell(kind)
    u, h, dt = inputs(4), states(4), torch.tensor([0.004, 0.1, 0.4, 1.0]).double()
    start = inputs(4, seed=5) if ramp else None
    expected = [
        solution(cell, u[i], h[i], float(dt[i]), start[i] if ramp else None) for i in range(4)
    ]
    for tolerance in (1e-4, 1e-6, 1e-8):
        cell.solver = Solver('dopri5', max_step=math.inf, rtol=tolerance, atol=tolerance)
        with torch.no_grad():
            ours = cell(u, h, dt, start)
        # the tolerance is of one sub-step; an interval here takes a few of them
        assert (ours - torch.stack(expected)).abs().max() < 20 * tolerance


def test_dopri5_raises_where_it_cannot_meet_its_tolerance(kind, make_cell):
    # Edifice returns the state where it gave up
    solver = Solver('dopri5', rtol=1e-12, atol=1e-12, max_steps=3, max_step=math.inf)
    cell = make_cell(kind, solver=solver)
    with pytest.raises(IntegrationError, match='an interval of 5 s does not meet rtol 1e-12'):
        cell(inputs(2), states(2), torch.tensor([1e-4, 5.0]))


@pytest.mark.parametrize('name', ['exact', 'fused', 'euler', 'midpoint', 'rk4'])
def test_interval_that_takes_too_many_sub_steps_is_refused(name, make_cell):
    cell = make_cell('neural', solver=Solver(name, max_step=0.01, max_steps=50))
    with torch.no_grad():
        cell(inputs(2), states(2), 0.4)
    with pytest.raises(IntegrationError, match=f'{name}: an interval of 100 s takes more than'):
        cell(inputs(2), states(2), torch.tensor([0.1, 100.0]))


@pytest.mark.parametrize('name', ['euler', 'midpoint', 'rk4'])
def test_explicit_solver_subdivides_what_would_be_unstable(name, kind, make_cell):
    """One sub-step of 5 s would multiply an error by 5 s / tau - 1 and more, again and again."""
    cell = make_cell(kind, solver=Solver(name, max_step=math.inf))
    u, h = inputs(16), states(16)
    limit = {'euler': 2.0, 'midpoint': 2.0, 'rk4': 2.785}[name]
    assert (5.0 * cell.fastest(h) > 4.0 * limit).all()
    precise = make_cell(kind, solver=Solver('dopri5', rtol=1e-8, atol=1e-8))
    with torch.no_grad():
        error = (cell(u, h, 5.0) - precise(u, h, 5.0)).abs().max()
        for _ in range(50):
            h = cell(u, h, 5.0)
    assert error < 0.1
    assert h.abs().max() < 10.0
    # the guard is what did it: the same step, taken at once, is off by more than the state is large
    rate, equilibrium = cell.field(cell.driven_by(u), states(16))
    assert (5.0 * rate * (equilibrium - states(16))).abs().max() > 2.0


def test_rates_never_exceed_the_bound_that_stability_rests_on(kind, make_cell):
    cell = make_cell(kind)
    wild = 50.0 * torch.randn(1000, 3, dtype=torch.float64)
    h = 50.0 * torch.randn(1000, 7, dtype=torch.float64)
    with torch.no_grad():
        rate, _ = cell.field(cell.driven_by(wild), h)
        bound = cell.fastest(torch.zeros_like(h)).max()
        assert (rate.amax(dim=1, keepdim=True) <= cell.fastest(h) * (1.0 + 1e-9)).all()
        assert rate.max() > 0.05 * bound  # and the bound is not idle


@pytest.mark.parametrize('ramp', [False, True])
@pytest.mark.parametrize('name', SOLVERS)
def test_batch_with_an_interval_per_sample_equals_its_samples(name, ramp, kind, make_cell):
    cell = make_cell(kind, solver=Solver(name))
    size = 7  # as many as units, where ncps is silently wrong
    u, h = inputs(size), states(size)
    start = inputs(size, seed=5) if ramp else None
    dt = torch.logspace(-3, 0, size).double()
    with torch.no_grad():
        together = cell(u, h, dt, start)
        alone = [
            cell(u[i : i + 1], h[i : i + 1], float(dt[i]), start[i : i + 1] if ramp else None)
            for i in range(size)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', SOLVERS)
def test_parts_of_an_interval_add_up(name, kind, make_cell):
    cell = make_cell(kind, solver=Solver(name, max_step=0.005, rtol=1e-9, atol=1e-9))
    u, h = inputs(9), states(9)
    with torch.no_grad():
        # 0.005 s is below half the stability limit of these cells, so that the sub-steps coincide
        assert (0.005 * cell.fastest(h.abs() + 3.0) < 1.0).all()
        torch.testing.assert_close(
            cell(u, cell(u, h, 0.2), 0.4), cell(u, h, 0.6), rtol=0.0, atol=1e-8
        )


@pytest.mark.parametrize('name', SOLVERS)
def test_state_is_continuous_where_time_does_not_pass(name, kind, make_cell):
    # CfC jumps here
    cell = make_cell(kind, solver=Solver(name))
    u, h = inputs(9), states(9)
    with torch.no_grad():
        for dt in (1e-3, 1e-6, 1e-9):
            assert (cell(u, h, dt) - h).abs().max() < 5.0 * cell.fastest(h).max() * dt


@pytest.mark.parametrize(
    ('name', 'hold', 'cell_kind'),
    list(itertools.product(SOLVERS, HOLDS, ('neural', 'synaptic', 'liquid'))),
)
def test_gradients_are_those_of_finite_differences(name, hold, cell_kind, make_cell):
    solver = Solver(name, max_step=0.2, rtol=1e-9, atol=1e-9)
    cell = make_cell(cell_kind, inputs=2, units=5, solver=solver)
    names = [n for n, _ in cell.named_parameters()]
    u = torch.rand(2, 2, 2, dtype=torch.float64)
    h, before = states(2, size=5), inputs(2, seed=4, size=2)
    dt = torch.tensor([[0.03, 0.31], [0.27, 0.11]]).double()  # one sub-step and two
    if name == 'dopri5':
        dt *= 0.1  # has a handful of sub-steps anyway

    class Unrolled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, *arguments):
            u, h, dt, before = arguments
            return cell.read(unroll(cell, u, dt, h, hold=hold, before=before))

    module = Unrolled()

    def run(u, h, dt, before, *parameters):
        named = {f'cell.{n}': p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(module, named, (u, h, dt, before))

    arguments = [u, h, dt, before, *(p.detach() for p in cell.parameters())]
    arguments = [a.clone().requires_grad_() for a in arguments]
    # wide differences: dopri5 changes its sub-steps with its arguments, within its tolerance
    assert torch.autograd.gradcheck(run, arguments, eps=1e-4, fast_mode=True)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'name': 'heun'}, "solver is 'heun', must be one of exact, fused"),
        ({'max_step': 0.0}, 'max_step is 0.0 s'),
        ({'max_step': math.nan}, 'max_step is nan s'),
        ({'unfolds': 0}, 'unfolds is 0'),
        ({'unfolds': 11, 'max_steps': 10}, 'unfolds is 11'),
        ({'rtol': 0.0, 'atol': 0.0}, 'nor both 0'),
        ({'rtol': math.nan}, 'rtol nan'),
    ],
)
def test_solver_that_could_not_work_is_refused_by_name(options, text):
    with pytest.raises(ValueError, match=text):
        Solver(**options)


def test_unfolds_are_the_fewest_sub_steps_and_max_step_the_longest(make_cell):
    def run(**options):
        cell = make_cell('neural', solver=Solver(**options))
        with torch.no_grad():
            return cell(inputs(3), states(3), 0.3)

    assert torch.equal(run(max_step=0.1), run(max_step=math.inf, unfolds=3))
    assert torch.equal(run(max_step=0.1, unfolds=2), run(max_step=math.inf, unfolds=3))
    assert torch.equal(run(max_step=0.1, unfolds=5), run(max_step=math.inf, unfolds=5))
    assert not torch.equal(run(max_step=0.1), run(max_step=math.inf, unfolds=4))


@pytest.mark.parametrize('name', ['euler', 'midpoint', 'rk4', 'dopri5'])
@pytest.mark.parametrize('recurrent, tau', [(5.0, 0.2), (4.0, 0.05), (5.0, 0.05), (10.0, 0.2)])
def test_explicit_solver_rests_where_a_steep_gate_rests(name, recurrent, tau):
    """A gate that pulls against itself is faster than any time constant says."""
    cell = NeuralLTC(1, 1, solver=Solver(name, max_steps=100_000)).double()
    values = {'gate_recurrent': recurrent, 'reversal': -3.0, 'leak': 1.0, 'log_tau': math.log(tau)}
    h = torch.full((1, 1), 0.9, dtype=torch.float64)
    u = torch.zeros(1, 1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        for parameter, value in values.items():
            getattr(cell, parameter).fill_(value)
        for _ in range(100):
            h = cell(u, h, 0.1)
        rate, equilibrium = cell.field(cell.driven_by(u), h)
    assert (rate * (equilibrium - h)).abs() < 1e-3


def test_tolerance_below_what_the_type_can_hold_is_refused(make_cell):
    cell = make_cell('neural', solver=Solver('dopri5', rtol=1e-10, atol=1e-10))
    cell(inputs(2), states(2), 0.1)
    with pytest.raises(IntegrationError, match='below what torch.float32 can hold'):
        cell.float()(inputs(2).float(), states(2).float(), 0.1)


@pytest.mark.parametrize('options', [{'unfolds': 2.5}, {'max_steps': math.inf}])
def test_number_of_sub_steps_that_is_not_whole_is_refused(options):
    with pytest.raises(ValueError, match='must be a whole number'):
        Solver(**options)


def test_export_of_a_thousand_sub_steps_is_refused_by_name(make_cell):
    arguments = (inputs(2), states(2), torch.tensor([0.01, 0.07], dtype=torch.float64))
    with pytest.raises(Exception, match='max_steps is 1000, and an exported graph holds'):
        torch.export.export(make_cell('neural', solver=Solver()), arguments)
