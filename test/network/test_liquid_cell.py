import math

import pytest
import torch

from lnn_ros.liquid.cells import LiquidCell
from lnn_ros.liquid.sequence import unroll
from lnn_ros.liquid.solvers import Solver


def parts(cell, u):
    """Return (tau, f) as the docstring gives them."""
    p = dict(cell.named_parameters())
    tau = torch.log1p(torch.exp(u @ p['tau.weight'].T + p['tau.bias'])) + 0.1
    inside = u @ p['hidden.weight'].T + p['hidden.bias']
    inside = inside * torch.sigmoid(inside)
    return tau, inside @ p['out.weight'].T + p['out.bias']


@pytest.mark.parametrize('dt', [1e-3, 0.1, 3.0, 1e4])
def test_exact_is_the_true_solution_for_any_interval(dt, make_cell):
    cell = make_cell('liquid')
    u, h = torch.randn(5, 3).double(), torch.randn(5, 7).double()
    with torch.no_grad():
        tau, f = parts(cell, u)
        expected = f + (h - f) * torch.exp(-dt / tau)
        torch.testing.assert_close(cell(u, h, dt), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_any_split_of_an_interval_gives_the_same_state(dtype, make_cell):
    cell = make_cell('liquid', dtype=dtype)
    u, h = torch.randn(64, 3, dtype=dtype), torch.randn(64, 7, dtype=dtype)
    with torch.no_grad():
        whole, split = cell(u, h, 1.0), h
        for _ in range(100):
            split = cell(u, split, 0.01)
    eps = torch.finfo(dtype).eps
    assert (whole - split).abs().max() < 100 * eps


def test_sub_steps_change_nothing_for_a_constant_input(make_cell):
    u, h = torch.randn(4, 3).double(), torch.randn(4, 7).double()
    with torch.no_grad():
        states = [
            make_cell('liquid', solver=Solver(max_step=step, unfolds=n))(u, h, 2.0)
            for step, n in ((0.01, 1), (math.inf, 1), (math.inf, 9))
        ]
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


def test_no_time_constant_is_below_a_tenth_of_a_second(make_cell):
    cell = make_cell('liquid')
    with torch.no_grad():
        tau = cell.time_constant(100.0 * torch.randn(1000, 3).double(), torch.zeros(1000, 7))
    assert tau.min() >= 0.1 and tau.min() < 0.101


def test_it_has_one_rest_state_and_no_cycle_under_a_constant_input(make_cell):
    # the LTC can have two, or oscillate: see test_synaptic.py
    cell = make_cell('liquid')
    u = torch.randn(1, 3).double().expand(50, 3)
    h = 10.0 * torch.randn(50, 7).double()
    with torch.no_grad():
        states = unroll(cell, u.unsqueeze(1).expand(50, 200, 3), 0.1, h)
        _, f = parts(cell, u)
    distance = (states - f.unsqueeze(1)).abs()
    assert (distance.diff(dim=1) <= 0.0).all()  # each unit goes straight there
    assert distance[:, -1].max() < 1e-3 * distance[:, 0].max()


def test_count_of_parameters_is_five_matrices_and_their_biases():
    size = 8
    count = sum(p.numel() for p in LiquidCell(size, size).parameters())
    assert count == 5 * size**2 + 4 * size
