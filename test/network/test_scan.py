"""Training in the compiled core against the torch cells, which say what is right."""

from __future__ import annotations

import copy
import itertools
import threading
import time

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lnn_ros.liquid import scan
from lnn_ros.liquid.cells import LiquidCell, NeuralLTC, SynapticLTC
from lnn_ros.liquid.sequence import HOLDS, integrate, unroll
from lnn_ros.liquid.solvers import IntegrationError, Solver
from lnn_ros.liquid.wiring import NCP, AutoNCP, FullyConnected, Random

INPUTS, UNITS, STEPS = 3, 13, 6
WIRINGS = {
    'complete': FullyConnected(INPUTS, UNITS, 4),
    'random': Random(INPUTS, UNITS, 4, sparsity=0.6),
    'ncp': NCP(INPUTS, 6, 5, 2, 3, 2, 2, 3),
    'autoncp': AutoNCP(INPUTS, UNITS, 3),
}
KINDS = [
    ('neural', 'exact'),
    ('liquid', 'exact'),
    *itertools.product(WIRINGS, ('exact', 'fused')),
]
CORE = pytest.importorskip('lnn_ros.core._core', reason='the compiled core is not installed')
VARIANTS = CORE.variants()


def make(kind, solver, seed=0):
    """Return a cell in float64 whose numbers float32 holds too."""
    torch.manual_seed(seed)
    if kind in WIRINGS:
        cell = SynapticLTC(WIRINGS[kind], solver=solver)
    else:
        cell = {'neural': NeuralLTC, 'liquid': LiquidCell}[kind](INPUTS, UNITS, solver=solver)
    return cell.double()


def sequence(cell, batch, dtype=torch.float64):
    """Return u, dt, h and the sample before: irregular, with 0, 1 and several sub-steps."""
    torch.manual_seed(batch)
    u, before = torch.rand(batch, STEPS, INPUTS), torch.rand(batch, INPUTS)
    dt = 0.3 * torch.rand(batch, STEPS)
    dt[:, 1::3] *= 0.1
    dt[::2, 2] = 0.0
    return tuple(x.to(dtype) for x in (u, dt, torch.rand(batch, cell.units), before))


def run(cell, given, hold):
    """Return the states and the gradients of a sum of them, by all that they depend on."""
    u, dt, h, before = given = [x.clone().requires_grad_() for x in given]
    states = integrate(cell, cell.solver, u, before, dt, h, hold)
    torch.manual_seed(0)
    weights = torch.rand(*states.shape).to(states)
    named = [(n, p) for n, p in cell.named_parameters() if not n.startswith('output')]
    named += zip(('u', 'dt', 'h', 'before'), given, strict=True)
    found = torch.autograd.grad(
        (states * weights).sum(), [p for _, p in named], materialize_grads=True
    )
    return states.detach(), dict(zip([n for n, _ in named], found, strict=True))


@pytest.fixture
def without_core(monkeypatch):
    """Return a function that runs another one in torch alone."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(scan, 'covers', lambda *tensors: False)
            return function(*arguments)

    return call


def distance(one, other):
    scale = other.double().norm()
    return float((one.double() - other.double()).norm() / scale) if scale > 0.0 else 0.0


@pytest.mark.parametrize('variant', range(len(VARIANTS)), ids=VARIANTS)
@pytest.mark.parametrize('hold', HOLDS)
@pytest.mark.parametrize(('kind', 'solver'), KINDS)
def test_states_and_gradients_are_those_of_torch_in_float64(
    kind, solver, hold, variant, without_core, monkeypatch
):
    monkeypatch.setattr(scan, '_FASTEST', variant)
    cell = make(kind, Solver(solver, max_step=0.1))
    single = copy.deepcopy(cell).float()
    for batch in (1, 3, 8, 33):
        given = sequence(cell, batch, torch.float32)
        states, gradients = without_core(run, cell, [x.double() for x in given], hold)
        for ours, of_states, of_gradients, like in (
            (cell, 1e-13, 1e-12, torch.float64),
            (single, 1e-6, 1e-6, torch.float32),
        ):
            found, of = run(ours, [x.to(like) for x in given], hold)
            assert found.dtype == like
            assert (found - states).abs().max() <= of_states * states.abs().max()
            far = {name: distance(of[name], gradients[name]) for name in gradients}
            assert max(far.values()) <= of_gradients, (batch, like, far)


@pytest.mark.parametrize(('kind', 'solver'), KINDS)
def test_core_is_what_computes(kind, solver, monkeypatch):
    calls = []
    true = scan._Scan.apply
    monkeypatch.setattr(scan._Scan, 'apply', lambda *given: calls.append(1) or true(*given))
    cell = make(kind, Solver(solver))
    unroll(cell, *sequence(cell, 2)[:1], 0.05)
    assert calls == [1]


@pytest.mark.parametrize('solver', ['exact', 'fused'])
def test_weights_and_inputs_of_any_size_give_what_torch_gives(solver, without_core):
    # the synapses' exponents then leave the range of their fast path
    cell = make('complete', Solver(solver))
    u, dt, h, before = sequence(cell, 9)
    with torch.no_grad():
        cell.synapses.sigma[::3] *= 1e4
        cell.sensory.mu[::2] -= 1e3
    u[0], u[1], u[2] = 1e20, -1e20, 1e4
    states, _ = run(cell, (u, dt, h, before), 'current')
    expected, _ = without_core(run, cell, (u, dt, h, before), 'current')
    torch.testing.assert_close(states, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(('kind', 'solver'), KINDS)
@pytest.mark.parametrize('size', ['many', 'few'])
def test_number_that_is_none_is_not_hidden(kind, solver, size):
    cell = make(kind, Solver(solver))
    u, dt, h, before = sequence(cell, 33 if size == 'many' else 2)
    with torch.no_grad():
        for parameter in cell.parameters():
            kept = parameter.clone()
            parameter.view(-1)[0] = torch.nan
            states = integrate(cell, cell.solver, u, before, dt, h, 'current')
            assert states.isnan().any() or cell.read(states).isnan().any()
            parameter.copy_(kept)


@pytest.mark.parametrize(('kind', 'solver'), KINDS)
def test_no_time_leaves_the_state_exactly_as_it_was(kind, solver):
    cell = make(kind, Solver(solver, unfolds=3)).float()
    u, _, h, before = sequence(cell, 5, torch.float32)
    states = integrate(cell, cell.solver, u, before, torch.zeros(5, STEPS), h, 'linear')
    assert torch.equal(states, h.unsqueeze(1).expand_as(states))


@pytest.mark.parametrize(('kind', 'solver'), KINDS)
def test_batch_gives_what_its_samples_give(kind, solver):
    cell = make(kind, Solver(solver, max_step=0.1))
    given = sequence(cell, 11)
    together = integrate(cell, cell.solver, given[0], given[3], given[1], given[2], 'linear')
    for i in range(11):
        u, dt, h, before = (x[i : i + 1] for x in given)
        alone = integrate(cell, cell.solver, u, before, dt, h, 'linear')
        torch.testing.assert_close(alone[0], together[i], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(('kind', 'solver'), KINDS)
def test_seeds_side_by_side_give_what_each_gives_alone(kind, solver):
    cells = [make(kind, Solver(solver, max_step=0.1), seed) for seed in range(3)]
    own = [sequence(cell, 4) for cell in cells]
    dt = own[0][1]
    parameters, buffers = torch.func.stack_module_state(cells)

    class Run(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cells[0]

        def forward(self, u, h, before, dt):
            return integrate(self.cell, self.cell.solver, u, before, dt, h, 'linear')

    def one(parameters, buffers, u, h, before):
        both = {f'cell.{n}': x for n, x in (parameters | buffers).items()}
        return torch.func.functional_call(Run(), both, (u, h, before, dt))

    stacked = [torch.stack(x) for x in zip(*own, strict=True)]
    u, _, h, before = (x.requires_grad_() for x in stacked)
    states = torch.func.vmap(one)(parameters, buffers, u, h, before)
    states.square().sum().backward()
    for i, cell in enumerate(cells):
        alone, of = run_square(cell, own[i], dt)
        torch.testing.assert_close(states[i], alone, rtol=1e-13, atol=1e-13)
        for name, gradient in of.items():
            torch.testing.assert_close(parameters[name].grad[i], gradient, rtol=1e-9, atol=1e-11)


def run_square(cell, given, dt):
    u, _, h, before = given
    states = integrate(cell, cell.solver, u, before, dt, h, 'linear')
    named = {n: p for n, p in cell.named_parameters() if not n.startswith('output')}
    found = torch.autograd.grad(states.square().sum(), list(named.values()))
    return states.detach(), dict(zip(named, found, strict=True))


def test_transforms_and_tensors_that_it_does_not_know_are_left_to_torch():
    cell = make('complete', Solver())
    u, dt, h, _ = sequence(cell, 2)
    dt = dt + 0.01

    def total(u):
        return unroll(cell, u, dt, h).sum()

    jacobian = torch.func.grad(total)(u)
    u.requires_grad_()
    total(u).backward()
    torch.testing.assert_close(u.grad, jacobian, rtol=1e-12, atol=1e-12)
    assert not scan.covers(u.half())
    assert not scan.covers(u, h.float())
    assert not scan.covers(torch.empty(2, device='meta'))
    assert scan.covers(u, h)


def test_states_whose_gradient_is_cut_off_have_none():
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, of_x):
            return None

    cell = make('complete', Solver(max_step=0.1))
    u, dt, h, _ = sequence(cell, 2)
    u.requires_grad_()
    (Cut.apply(unroll(cell, u, dt + 0.01, h)).sum() + u.sum()).backward()
    assert torch.equal(u.grad, torch.ones_like(u))
    assert cell.synapses.mu.grad is None


def test_interval_of_too_many_sub_steps_is_refused():
    cell = make('neural', Solver(max_step=0.1, max_steps=5))
    with pytest.raises(IntegrationError, match=r'an interval of 0\.8 s takes more than max_steps'):
        unroll(cell, torch.zeros(2, 2, INPUTS).double(), torch.tensor([[0.3, 0.1], [0.8, 0.1]]))


def test_subclass_with_a_field_of_its_own_is_not_overruled(without_core):
    class Leaky(NeuralLTC):
        def field(self, driven, h):
            rate, equilibrium = super().field(driven, h)
            return 2.0 * rate, equilibrium

    torch.manual_seed(0)
    cell = Leaky(INPUTS, UNITS)
    u = torch.rand(2, 3, INPUTS)
    assert torch.equal(unroll(cell, u, 0.1), without_core(unroll, cell, u, 0.1))


def test_other_threads_run_during_a_pass():
    cell = SynapticLTC(FullyConnected(INPUTS, 128))
    u = torch.rand(32, 32, INPUTS)
    counted, over = [0], threading.Event()

    def count():
        while not over.is_set():
            counted[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    with torch.no_grad():
        unroll(cell, u, 0.05)
        thread.start()
        try:
            before = counted[0]
            begun = time.perf_counter()
            while time.perf_counter() - begun < 0.3:
                unroll(cell, u, 0.05)
            during = counted[0] - before
        finally:
            over.set()
            thread.join()
    # a pass of some 15 ms that kept the GIL would let it run once per pass, some 20 times
    assert during > 60


@pytest.mark.parametrize('form', ['neural', 'autoncp', 'liquid'])
def test_gradient_is_differentiated_again_by_torch_alone_and_never_wrongly(form):
    cell = make(form, Solver())
    u = torch.rand(2, 4, cell.inputs, dtype=torch.float64, requires_grad=True)

    def second(states):
        (first,) = torch.autograd.grad(states.square().sum(), u, create_graph=True)
        return torch.autograd.grad(first.square().sum(), u)[0]

    with pytest.raises(RuntimeError, match='cannot be differentiated again'):
        second(unroll(cell, u, 0.1))
    with scan.in_torch():
        found = second(unroll(cell, u, 0.1))
    assert torch.isfinite(found).all() and found.abs().max() > 0.0


@pytest.mark.parametrize('form', ['neural', 'autoncp', 'liquid'])
def test_checkpoint_recomputes_and_autocast_and_tangents_are_left_to_torch(form):
    cell = make(form, Solver()).float()
    u = torch.rand(2, 4, cell.inputs, requires_grad=True)
    expected = torch.autograd.grad(unroll(cell, u, 0.1).sum(), u)[0]
    checkpointed = checkpoint(lambda u: unroll(cell, u, 0.1), u, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(checkpointed.sum(), u)[0], expected)
    with torch.autocast('cpu', torch.bfloat16):
        assert not scan.covers(u)
    with torch.autograd.forward_ad.dual_level():
        assert not scan.covers(u)
