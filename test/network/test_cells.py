import math

import numpy as np
import pytest
import torch

from lnn_ros.liquid.cells import NeuralLTC
from lnn_ros.liquid.solvers import Solver

INPUTS, UNITS = 3, 6
torch.set_num_threads(1)  # a second one only costs, at these sizes


def make(seed=0, max_step=0.05, dtype=torch.float64, scale=1.0, **options):
    """Return a cell none of whose parameters is at a value that could hide a mistake."""
    torch.manual_seed(seed)
    cell = NeuralLTC(INPUTS, UNITS, solver=Solver(max_step=max_step), **options).to(dtype)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name != 'log_tau':
                parameter.add_(0.3 * torch.randn_like(parameter)).mul_(scale)
    return cell


def batch_of(size, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(size, INPUTS, generator=generator, dtype=dtype)
    h = torch.randn(size, UNITS, generator=generator, dtype=dtype)
    dt = 10.0 ** (torch.rand(size, generator=generator, dtype=dtype) * 3 - 3)  # 1 ms to 1 s
    return u, h, dt


def derivative(cell, u, h):
    """Return dh/dt of one sample in numpy, term by term as in the docstring of NeuralLTC."""
    p = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    f = np.exp(p['log_gain']) / (
        1.0 + np.exp(-(p['gate_input'] @ u + p['gate_recurrent'] @ h + p['gate_bias']))
    )
    tau = np.exp(p['log_tau'])
    return (-h + p['leak'] + p['drive'] @ u + f * (p['reversal'] - h)) / tau


def solution(cell, u, h, dt, steps=4000):
    """Integrate the equation by classical Runge-Kutta in steps far below every time constant."""
    step = dt / steps
    for _ in range(steps):
        k1 = derivative(cell, u, h)
        k2 = derivative(cell, u, h + step / 2 * k1)
        k3 = derivative(cell, u, h + step / 2 * k2)
        k4 = derivative(cell, u, h + step * k3)
        h = h + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return h


def test_field_is_the_equation_of_the_docstring():
    cell = make()
    u, h, _ = batch_of(5)
    with torch.no_grad():
        rate, equilibrium = cell.field(cell.driven_by(u), h)
    ours = (rate * (equilibrium - h)).numpy()
    theirs = [derivative(cell, *sample) for sample in zip(u.numpy(), h.numpy(), strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_step_equals_exponential_euler_written_out_in_numpy():
    cell = make()
    u, h, dt = batch_of(8)
    expected = []
    p = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    for u_i, h_i, dt_i in zip(u.numpy(), h.numpy(), dt.numpy(), strict=True):
        steps = math.ceil(dt_i / 0.05)
        for _ in range(steps):
            pre = p['gate_input'] @ u_i + p['gate_recurrent'] @ h_i + p['gate_bias']
            f = np.exp(p['log_gain']) / (1.0 + np.exp(-pre))
            limit = (p['leak'] + p['drive'] @ u_i + f * p['reversal']) / (1.0 + f)
            liquid_tau = np.exp(p['log_tau']) / (1.0 + f)
            h_i = limit + (h_i - limit) * np.exp(-dt_i / steps / liquid_tau)
        expected.append(h_i)
    with torch.no_grad():
        np.testing.assert_allclose(cell(u, h, dt).numpy(), expected, rtol=1e-12)


def test_step_converges_to_the_solution_in_first_order():
    u, h, _ = batch_of(1)
    errors = []
    for max_step in (0.002, 0.001, 0.0005):
        cell = make(max_step=max_step, tau_range=(0.1, 2.0))
        with torch.no_grad():
            ours = cell(u, h, 0.4).numpy()[0]
        errors.append(np.abs(ours - solution(cell, u.numpy()[0], h.numpy()[0], 0.4)).max())
    assert errors[-1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize('size', [1, 2, UNITS, INPUTS, 17])
def test_batch_with_an_interval_per_sample_equals_its_samples(size):
    # ncps is silently wrong here when the batch is as large as the cell
    cell = make()
    u, h, dt = batch_of(size)
    with torch.no_grad():
        together = cell(u, h, dt)
        alone = [cell(u[i : i + 1], h[i : i + 1], float(dt[i])) for i in range(size)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_one_number_is_every_samples_interval():
    cell = make()
    u, h, _ = batch_of(UNITS)
    with torch.no_grad():
        each = cell(u, h, torch.full((UNITS,), 0.13, dtype=h.dtype))
        assert torch.equal(cell(u, h, 0.13), each)
        assert torch.equal(cell(u, h, torch.tensor(0.13, dtype=h.dtype)), each)


@pytest.mark.parametrize(('dt', 'parts'), [(0.2, 2), (0.2, 4), (0.1, 2), (0.06, 2), (10.0, 5)])
def test_parts_of_an_interval_add_up_exactly_where_their_sub_steps_coincide(dt, parts):
    cell = make()
    u, h, _ = batch_of(9)
    with torch.no_grad():
        whole, split = cell(u, h, dt), h
        for _ in range(parts):
            split = cell(u, split, dt / parts)
    torch.testing.assert_close(whole, split, rtol=0.0, atol=1e-12)


def test_two_half_steps_differ_from_one_in_second_order():
    cell = make(tau_range=(0.1, 2.0))
    u, h, _ = batch_of(64)
    differences = []
    for dt in (0.02, 0.01, 0.005):  # all within one sub-step
        with torch.no_grad():
            whole, halves = cell(u, h, dt), cell(u, cell(u, h, dt / 2), dt / 2)
        differences.append(float((whole - halves).abs().max()))
        assert differences[-1] < 0.05 * float((whole - h).abs().max())
    assert differences[0] / differences[1] == pytest.approx(4.0, abs=0.6)
    assert differences[1] / differences[2] == pytest.approx(4.0, abs=0.4)


def test_state_is_continuous_where_time_does_not_pass():
    cell = make()
    u, h, _ = batch_of(16)
    with torch.no_grad():
        for dt in (1e-3, 1e-6, 1e-9):
            # no unit is faster than (1 + gain) / tau, about 200 per second here
            assert (cell(u, h, dt) - h).abs().max() < 2e3 * dt
        assert torch.equal(cell(u, h, 1e-30), cell(u, h, 1e-25))


@pytest.mark.parametrize('scale', [1.0, 8.0])
def test_state_stays_between_where_it_was_and_its_equilibria(scale):
    """Hold the neural form to the bound that follows from its equation.

    The gate f lies in (0, gain), and (c + f A) / (1 + f) with c = leak + drive u is monotonous in
    f, so every equilibrium lies between c and (c + gain A) / (1 + gain); each sub-step ends between
    its start and an equilibrium.
    """
    cell = make(scale=scale)
    u, h, dt = batch_of(500)
    with torch.no_grad():
        current = cell.leak + u @ cell.drive.T
        gain = cell.log_gain.exp()
        corners = torch.stack((h, current, (current + gain * cell.reversal) / (1.0 + gain)))
        low, high = corners.amin(0) - 1e-9, corners.amax(0) + 1e-9
        for _ in range(20):
            h = cell(u, h, dt)
            assert ((h >= low) & (h <= high)).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_step_of_a_thousand_seconds_is_stable(dtype):
    cell = make(dtype=dtype, max_step=1.0)
    u, h, _ = batch_of(4, dtype)
    with torch.no_grad():
        cell.gate_recurrent.zero_()  # then there is one equilibrium, and it is known
        _, equilibrium = cell.field(cell.driven_by(u), h)
        torch.testing.assert_close(cell(u, h, 1000.0), equilibrium, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('tau_range', [(0.02, 2.0), (0.005, 10.0), (0.1, 0.1)])
def test_time_constants_start_out_log_uniform_over_their_range(tau_range):
    torch.manual_seed(0)
    logs = NeuralLTC(1, 2000, tau_range).log_tau.detach().numpy()
    low, high = np.log(tau_range)
    assert logs.min() >= low - 1e-6 and logs.max() <= high + 1e-6
    quartiles = low + (high - low) * np.array([0.25, 0.5, 0.75])
    np.testing.assert_allclose(np.quantile(logs, (0.25, 0.5, 0.75)), quartiles, atol=0.25)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'tau_range': (0.0, 1.0)}, 'tau_range'),
        ({'tau_range': (2.0, 1.0)}, 'tau_range'),
        ({'tau_range': (math.nan, 1.0)}, 'tau_range'),
    ],
)
def test_cell_that_could_not_run_is_refused_by_name(options, text):
    with pytest.raises(ValueError, match=text):
        NeuralLTC(INPUTS, UNITS, **options)


@pytest.mark.parametrize('bad', [0.0, -0.01, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('per_sample', [False, True])
def test_interval_that_is_not_a_positive_number_is_refused(bad, per_sample):
    cell = make()
    u, h, dt = batch_of(4)
    dt[2] = bad
    with pytest.raises(ValueError, match='every interval must be finite and greater than 0 s'):
        cell(u, h, dt if per_sample else bad)


@pytest.mark.parametrize('shape', [(1,), (3,), (UNITS,), (4, 1), (1, 4), (4, UNITS)])
def test_intervals_of_another_shape_than_the_batch_are_refused(shape):
    u, h, _ = batch_of(4)
    with pytest.raises(ValueError, match='dt has shape'):
        make()(u, h, torch.full(shape, 0.1))


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_input_that_is_not_finite_is_refused(bad):
    u, h, dt = batch_of(4)
    u[1, 2] = bad
    with pytest.raises(ValueError, match='not finite'):
        make()(u, h, dt)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    cell = NeuralLTC(2, 3).double()
    names = [name for name, _ in cell.named_parameters()]
    u, h = torch.randn(2, 2).double(), torch.randn(2, 3).double()
    dt = torch.tensor([0.03, 0.17]).double()  # one sub-step and four

    def step(u, h, dt, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(cell, named, (u, h, dt))

    arguments = [u, h, dt, *(parameter.detach() for parameter in cell.parameters())]
    assert torch.autograd.gradcheck(step, [a.clone().requires_grad_() for a in arguments])


def test_parameters_given_by_functional_call_are_the_ones_used():
    # ncps holds its parameters twice and ignores these
    cell, other = make(seed=0), make(seed=5)
    u, h, dt = batch_of(4)
    with torch.no_grad():
        borrowed = torch.func.functional_call(cell, dict(other.named_parameters()), (u, h, dt))
        assert torch.equal(borrowed, other(u, h, dt))
        cell.load_state_dict(other.state_dict(), assign=True)
        assert torch.equal(cell(u, h, dt), borrowed)
