import copy
import itertools

import pytest
import torch

from lnn_ros.liquid import network
from lnn_ros.liquid.cells import LiquidCell, NeuralLTC, SynapticLTC
from lnn_ros.liquid.sequence import HOLDS
from lnn_ros.liquid.solvers import SOLVERS, Solver
from lnn_ros.liquid.wiring import AutoNCP, FullyConnected

CELLS = {
    'liquid': network.liquid_cell,
    'neural': lambda inputs, outputs, solver: NeuralLTC(inputs, outputs, solver=solver),
    'synaptic': lambda inputs, outputs, solver: SynapticLTC(
        FullyConnected(inputs, outputs), solver=solver
    ),
    'wired': lambda inputs, outputs, solver: SynapticLTC(
        AutoNCP(inputs, outputs + 12, outputs), solver=solver
    ),
}
EMBED, HIDDEN, BATCH, STEPS = 3, 8, 4, 10


def make(cell='liquid', build=network.build, seed=0, embed=EMBED, **options):
    torch.manual_seed(seed)
    options = {'hidden_size': HIDDEN, 'num_layers': 2, 'dropout': 0.0, **options}
    return build(embed, cell=CELLS[cell], **options)


def example(seed=1):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(BATCH, STEPS, EMBED, generator=generator)
    return u, 10.0 ** (2.5 * torch.rand(BATCH, STEPS, generator=generator) - 2.5)


def run_steps(net, u, dt, mask=None):
    cache, outputs = net.init_cache(u.shape[0]), []
    for k in range(u.shape[1]):
        present = None if mask is None else mask[:, k]
        y, cache = net.step(cache, u[:, k], dt[:, k], present)
        outputs.append(y)
    return torch.stack(outputs, dim=1), cache


@pytest.mark.parametrize('build', [network.build, network.build_with_ffn])
@pytest.mark.parametrize(('cell', 'hold'), list(itertools.product(CELLS, HOLDS)))
def test_steps_equal_the_sequence(cell, hold, build):
    net = make(cell, build, hold=hold).eval()
    u, dt = example()
    with torch.no_grad():
        whole, cache = net.sequence(u, dt)
        steps, step_cache = run_steps(net, u, dt)
        torch.testing.assert_close(steps, whole, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(net(u, dt), whole[:, -1], rtol=0.0, atol=0.0)
        # and a sequence goes on from where another ended
        _, half = net.sequence(u[:, :4], dt[:, :4])
        rest, _ = net.sequence(u[:, 4:], dt[:, 4:], cache=half)
        torch.testing.assert_close(rest, whole[:, 4:], rtol=0.0, atol=1e-6)
    assert whole.shape == (BATCH, STEPS, HIDDEN)
    assert int(cache['step']) == int(step_cache['step']) == STEPS
    assert whole.std() > 0.1


@pytest.mark.parametrize('solver', SOLVERS)
@pytest.mark.parametrize('cell', CELLS)
def test_every_solver_trains_in_the_builder(cell, solver):
    net = make(cell, solver=solver, integration_steps=2)
    u, dt = example()
    net(u, dt.clamp(max=0.2)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_cost_of_a_step_does_not_grow_with_the_history():
    net = make().eval()
    u, dt = example()

    def tensors(cache):
        for value in cache.values():
            yield from tensors(value) if isinstance(value, dict) else [value]

    def size(cache):
        return sum(t.numel() for t in tensors(cache) if isinstance(t, torch.Tensor))

    cache = net.init_cache(BATCH)
    start = size(cache)
    for _ in range(3):
        _, cache = net.sequence(u, dt, cache=cache)
        assert size(cache) == start


def test_cache_is_the_one_that_edifice_documents_and_is_not_changed():
    net = make(num_layers=3)
    cache = net.init_cache(2)
    assert list(cache['layers']) == ['layer_1', 'layer_2', 'layer_3']
    assert torch.equal(cache['layers']['layer_1']['h'], torch.zeros(2, HIDDEN))
    assert cache['step'] == 0
    assert cache['config'] == {
        'embed_dim': EMBED,
        'hidden_size': HIDDEN,
        'num_layers': 3,
        'window_size': 60,
    }
    before = copy.deepcopy(cache)
    net.step(cache, torch.randn(2, EMBED), 0.1)
    assert torch.equal(cache['layers']['layer_2']['h'], before['layers']['layer_2']['h'])
    assert cache['step'] == 0


def test_layer_is_the_one_that_edifice_documents():
    layer = network.build_ltc_layer(HIDDEN, dropout=0.0)
    assert isinstance(layer.cell, LiquidCell)
    u = torch.randn(2, 1, HIDDEN)
    x = torch.nn.functional.layer_norm(u[:, 0], (HIDDEN,))
    with torch.no_grad():
        tau = torch.nn.functional.softplus(layer.cell.tau(x)) + 0.1
        f = layer.cell.out(torch.nn.functional.silu(layer.cell.hidden(x)))
        expected = u[:, 0] + f * (1.0 - torch.exp(-0.3 / tau))
        torch.testing.assert_close(layer(u, 0.3)[0][:, 0], expected, rtol=0.0, atol=1e-6)


def test_ffn_variant_is_a_swiglu_after_each_layer():
    net = make(build=network.build_with_ffn, num_layers=1, embed=HIDDEN)
    u, dt = torch.randn(BATCH, STEPS, HIDDEN), 0.1
    norm = torch.nn.functional.layer_norm
    with torch.no_grad():
        x, _ = net.layers[0](u, dt)
        p = dict(net.ffn[0].named_parameters())
        assert p['gate.weight'].shape == p['up.weight'].shape == (4 * HIDDEN, HIDDEN)
        z = norm(x, (HIDDEN,))
        gate, up = (z @ p[f'{n}.weight'].T + p[f'{n}.bias'] for n in ('gate', 'up'))
        inside = gate * torch.sigmoid(gate) * up
        expected = norm(x + inside @ p['down.weight'].T + p['down.bias'], (HIDDEN,))[:, -1]
        torch.testing.assert_close(net(u, dt), expected, rtol=0.0, atol=1e-5)


def test_dropout_acts_in_training_alone():
    net = make(dropout=0.5)
    u, dt = example()
    assert not torch.equal(net(u, dt), net(u, dt))
    net.eval()
    assert torch.equal(net(u, dt), net(u, dt))


def test_missing_inputs_are_held_in_steps_as_in_a_sequence():
    net = make('neural', hold='linear').eval()
    u, dt = example()
    mask = torch.rand(BATCH, STEPS, EMBED) < 0.5
    mask[:, 0] = True
    u = torch.where(mask, u, torch.nan)
    with torch.no_grad():
        whole, _ = net.sequence(u, dt, mask=mask)
        steps, _ = run_steps(net, u, dt, mask)
        zeros, _ = net.sequence(torch.where(mask, u, 0.0), dt)
    torch.testing.assert_close(steps, whole, rtol=0.0, atol=1e-6)
    assert torch.isfinite(whole).all() and not torch.allclose(whole, zeros, atol=1e-2)
    mask[1, 0, 2] = False
    with pytest.raises(ValueError, match='there is nothing to hold'):
        net(u, dt, mask=mask)


def test_stamps_take_the_place_of_intervals():
    net = make().eval()
    u, _ = example()
    stamps = 1_790_000_000 * 10**9 + torch.randint(10**6, 10**8, (BATCH, STEPS + 1)).cumsum(1)
    dt = (stamps.diff(dim=1).double() * 1e-9).float()
    assert torch.equal(net(u, stamps_ns=stamps), net(u, dt))
    with pytest.raises(ValueError, match='give dt in seconds or stamps_ns'):
        net(u)


def test_exact_stack_of_one_layer_is_the_same_at_every_rate():
    net = make(num_layers=1).eval()
    u = torch.randn(BATCH, 1, EMBED)
    with torch.no_grad():
        outputs = [net(u.expand(-1, n, -1), 1.0 / n) for n in (1, 10, 100)]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize('hold', HOLDS)
def test_deeper_stack_converges_with_the_rate(hold):
    # a layer sees the one below it sampled, so that two are no longer exactly the same
    net = make(hold=hold).eval()
    u = torch.randn(BATCH, 1, EMBED)
    with torch.no_grad():
        truth = net(u.expand(-1, 1000, -1), 0.001)
        errors = [float((net(u.expand(-1, n, -1), 1 / n) - truth).abs().max()) for n in (10, 50)]
    assert errors[1] < 0.4 * errors[0] < 0.1


@pytest.mark.parametrize('hold', HOLDS)
@pytest.mark.parametrize('cell', CELLS)
def test_one_step_can_be_exported(cell, hold):
    net = make(cell, hold=hold, num_layers=1, solver=Solver(max_steps=4)).eval()
    cache, u, dt = net.init_cache(2), torch.randn(2, EMBED), torch.tensor([0.03, 0.17])
    exported = torch.export.export(network.Step(net), (cache, u, dt)).module()
    theirs = cache
    with torch.no_grad():
        for _ in range(3):
            y, cache = net.step(cache, u, dt)
            y_exported, theirs = exported(theirs, u, dt)
            torch.testing.assert_close(y_exported, y, rtol=0.0, atol=1e-6)
            u, dt = u.flip(0) + 0.5, dt.flip(0)
        assert int(theirs['step']) == 3
        # what is refused here is refused there
        refused = [(u, -dt), (u, 0.0 * dt), (u * torch.nan, dt)]
        for bad_u, bad_dt in refused + [(u, 50.0 * dt)] * (cell != 'liquid' or hold == 'linear'):
            with pytest.raises(RuntimeError):
                exported(theirs, bad_u, bad_dt)


@pytest.mark.parametrize('solver', SOLVERS)
def test_cell_can_be_exported_under_every_solver(solver, make_cell):
    cell = make_cell('neural', solver=Solver(solver, max_steps=16, rtol=0.1, atol=0.1))
    arguments = [torch.rand(2, 3), torch.rand(2, 7), torch.tensor([0.01, 0.07])]
    arguments = tuple(argument.double() for argument in arguments)
    exported = torch.export.export(cell, arguments).module()
    torch.testing.assert_close(exported(*arguments), cell(*arguments), rtol=0.0, atol=1e-9)


def test_sizes_and_counts():
    assert network.output_size() == 256 and network.output_size(hidden_size=128) == 128
    assert network.param_count(64, 128, 2) == 64 * 128 + 2 * 5 * 128**2
    assert network.param_count(128, 128, 2) == 2 * 5 * 128**2
    for embed, build, ffn in ((3, network.build, 0), (8, network.build_with_ffn, 1)):
        net = build(embed, hidden_size=8, num_layers=2)
        projection = embed * 8 + 8 if embed != 8 else 0
        layer = 5 * 64 + 4 * 8 + 2 * 8
        swiglu = 3 * 8 * 32 + 2 * 32 + 8 + 2 * 8
        assert network.exact_param_count(net) == projection + 2 * (layer + ffn * swiglu) + 2 * 8
    # the documented count leaves out biases and norms
    net = network.build(64)
    assert 0.98 < network.param_count(64) / network.exact_param_count(net) < 1.0


def test_defaults_are_the_documented_ones_and_can_be_built_from():
    common = {
        'hidden_size': 256,
        'num_layers': 4,
        'dropout': 0.1,
        'window_size': 60,
        'integration_steps': 1,
    }
    assert network.recommended_defaults() == {**common, 'solver': 'rk4'}
    assert network.high_accuracy_defaults() == {**common, 'solver': 'dopri5'}
    for defaults in (network.recommended_defaults(), network.high_accuracy_defaults(), {}):
        net = network.build(16, **{**defaults, 'hidden_size': 32})
        assert net(torch.randn(2, 3, 16), 0.05).shape == (2, 32)
        assert len(net.layers) == 4 and net.config['window_size'] == 60
        assert net.layers[0].cell.solver.name == defaults.get('solver', 'exact')


@pytest.mark.parametrize('cell', CELLS)
def test_copies_and_borrowed_parameters_are_the_ones_used(cell):
    # ncps keeps its parameters in two places, and the second is the one that it computes with
    net, other = make(cell, seed=0).eval(), make(cell, seed=5).eval()
    u, dt = example()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(net)(u, dt), net(u, dt))
        expected = other(u, dt)
        borrowed = {**dict(other.named_parameters()), **dict(other.named_buffers())}
        assert torch.equal(torch.func.functional_call(net, borrowed, (u, dt)), expected)
        assert not torch.equal(net(u, dt), expected)
        net.load_state_dict(other.state_dict(), assign=True)
        assert torch.equal(net(u, dt), expected)
        for parameter in other.parameters():  # assign: they are now the same tensors
            parameter.mul_(1.5)
        assert torch.equal(net(u, dt), other(u, dt)) and not torch.equal(net(u, dt), expected)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'hold': 'cubic'}, "hold is 'cubic'"),
        ({'solver': 'heun'}, "solver is 'heun'"),
        ({'num_layers': 0}, 'num_layers is 0'),
        ({'solver': Solver('rk4'), 'integration_steps': 3}, 'as unfolds of the solver'),
    ],
)
def test_network_that_could_not_run_is_refused_by_name(options, text):
    with pytest.raises(ValueError, match=text):
        make(**options)
    with pytest.raises(ValueError, match='has 4 inputs and 2 outputs'):
        network.LiquidLayer(SynapticLTC(AutoNCP(4, 12, 2)), 0.1, 'current')
