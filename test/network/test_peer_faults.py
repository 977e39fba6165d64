"""One test per fault that was found in other libraries of liquid networks: none may occur here.

What has a test of its own elsewhere is named: batched intervals in test_ncps_bridge.py and
test_solvers.py; stamps in test_sequence.py; constraints in test_synaptic.py; parameters held twice
and torch.export in test_network.py; sparse wirings in test_wiring.py.
"""

import inspect
import math
import pkgutil

import pytest
import torch

import lnn_ros.liquid
from lnn_ros.liquid import network
from lnn_ros.liquid.cells import Cell
from lnn_ros.liquid.sequence import unroll
from lnn_ros.liquid.solvers import SOLVERS, Solver


def test_no_interval_has_a_default():
    assert inspect.signature(Cell.forward).parameters['dt'].default is inspect.Parameter.empty
    step = inspect.signature(network.LiquidNetwork.step).parameters['dt']
    assert step.default is inspect.Parameter.empty
    with pytest.raises(ValueError, match='give dt in seconds or stamps_ns'):
        network.build(3, hidden_size=4)(torch.zeros(1, 2, 3))


@pytest.mark.parametrize('bad', [0.0, -0.01, math.nan, math.inf])
@pytest.mark.parametrize('solver', SOLVERS)
def test_interval_that_is_no_duration_is_refused(solver, bad, kind, make_cell):
    # 0 gives NaN in ncps, and a negative one 1e239 in 200 steps
    cell = make_cell(kind, solver=Solver(solver))
    u, h = torch.zeros(3, 3).double(), torch.zeros(3, 7).double()
    for dt in (bad, torch.tensor([0.1, bad, 0.1])):
        with pytest.raises(ValueError, match='every interval must be finite and greater than 0 s'):
            cell(u, h, dt)
    with pytest.raises(ValueError, match='every interval must be finite and greater than 0 s'):
        unroll(cell, u.unsqueeze(1), torch.tensor([[0.1], [0.1], [bad]]))


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_input_that_is_not_finite_never_reaches_a_state(bad, kind, make_cell):
    cell = make_cell(kind)
    u, h = torch.zeros(3, 3).double(), torch.zeros(3, 7).double()
    u[1, 2] = bad
    with pytest.raises(ValueError, match='the input has values that are not finite'):
        cell(u, h, 0.1)
    with pytest.raises(ValueError, match='the input has values that are not finite'):
        cell(torch.zeros_like(u), h, 0.1, start=u)
    net = network.build(3, hidden_size=4, dropout=0.0).double()
    cache = net.init_cache(3)
    with pytest.raises(ValueError, match='the input has values that are not finite'):
        net.step(cache, u, 0.1)
    y, _ = net.step(cache, torch.zeros_like(u), 0.1)  # the cache is as it was
    assert torch.isfinite(y).all()


def test_state_that_is_not_finite_is_refused(kind, make_cell):
    h = torch.full((1, 7), math.nan).double()
    with pytest.raises(ValueError, match='the state has values that are not finite'):
        make_cell(kind)(torch.zeros(1, 3).double(), h, 0.1)


@pytest.mark.parametrize('solver', SOLVERS)
@pytest.mark.parametrize('dt', [1e-9, 1e-4, 5.0])
def test_no_solver_gives_garbage_for_a_legal_interval(solver, dt, kind, make_cell):
    cell = make_cell(kind, solver=Solver(solver), dtype=torch.float32)
    h = torch.randn(16, 7)
    with torch.no_grad():
        for _ in range(5):
            h = cell(torch.rand(16, 3), h, dt)
    assert torch.isfinite(h).all() and h.abs().max() < 20.0


def test_every_public_name_is_documented():
    for info in pkgutil.iter_modules(lnn_ros.liquid.__path__):
        module = __import__(f'lnn_ros.liquid.{info.name}', fromlist=['_'])
        assert module.__doc__
        for name, thing in vars(module).items():
            if name.startswith('_') or getattr(thing, '__module__', None) != module.__name__:
                continue
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert thing.__doc__, f'{info.name}.{name}'
