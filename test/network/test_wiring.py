import json

import numpy as np
import pytest
import torch

from lnn_ros.liquid.cells import SynapticLTC
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import NCP, AutoNCP, FullyConnected, Random, Wiring, wiring_from_ncps

ncps_wirings = pytest.importorskip('ncps.wirings')

NCP_SIZES = (12, 8, 4, 6, 4, 5, 3)
WIRINGS = {
    'fully connected': (lambda: FullyConnected(4, 6), lambda: ncps_wirings.FullyConnected(6)),
    'no self-connections': (
        lambda: FullyConnected(4, 6, 2, self_connections=False),
        lambda: ncps_wirings.FullyConnected(6, 2, self_connections=False),
    ),
    'random': (lambda: Random(4, 9, 3, 0.7), lambda: ncps_wirings.Random(9, 3, 0.7)),
    'ncp': (lambda: NCP(4, *NCP_SIZES), lambda: ncps_wirings.NCP(*NCP_SIZES)),
    'auto ncp': (lambda: AutoNCP(4, 20, 3), lambda: ncps_wirings.AutoNCP(20, 3)),
    'sparse auto ncp': (
        lambda: AutoNCP(4, 20, 3, 0.8, seed=5),
        lambda: ncps_wirings.AutoNCP(20, 3, 0.8, seed=5),
    ),
}


@pytest.fixture(params=WIRINGS)
def both(request):
    ours, theirs = (make() for make in WIRINGS[request.param])
    theirs.build(4)
    return ours, theirs


def same(one, other):
    return (
        np.array_equal(one.synapses, other.synapses)
        and np.array_equal(one.sensory, other.sensory)
        and one.outputs == other.outputs
    )


def test_seed_means_the_same_circuit_as_in_ncps(both):
    ours, theirs = both
    assert np.array_equal(ours.synapses, theirs.adjacency_matrix)
    assert np.array_equal(ours.sensory, theirs.sensory_adjacency_matrix)
    assert ours.outputs == theirs.output_dim
    assert ours.count == theirs.synapse_count + theirs.sensory_synapse_count


def test_wiring_of_ncps_is_accepted(both):
    ours, theirs = both
    assert same(wiring_from_ncps(theirs), ours)


def test_wiring_of_ncps_without_inputs_is_refused():
    with pytest.raises(ValueError, match='call its build'):
        wiring_from_ncps(ncps_wirings.AutoNCP(20, 3))


def test_wiring_is_saved_as_its_adjacency(both):
    ours, _ = both
    assert same(Wiring(**json.loads(json.dumps(ours.to_dict()))), ours)


def test_cell_keeps_its_wiring_with_its_parameters(both):
    ours, _ = both
    cell = SynapticLTC(ours)
    assert same(cell.wiring, ours)
    other = SynapticLTC(Wiring(ours.synapses[::-1, ::-1], ours.sensory[::-1, ::-1], ours.outputs))
    other.load_state_dict(cell.state_dict())
    assert same(other.wiring, ours)
    u, h = torch.rand(2, 4), torch.rand(2, ours.units)
    assert torch.equal(other(u, h, 0.1), cell(u, h, 0.1))


@pytest.mark.parametrize('name', ['exact', 'fused', 'euler'])
def test_what_the_wiring_forbids_has_no_effect_at_all(both, name):
    """Every entry of the Jacobian of a sub-step without a synapse is exactly zero.

    In ncps's wired CfC 25 of 25 forbidden entries from sensor to inter neuron are not.
    """
    wiring, _ = both
    torch.manual_seed(0)
    cell = SynapticLTC(wiring, (1.0, 2.0), Solver(name)).double()
    u = torch.rand(4).double().requires_grad_()
    h = torch.rand(wiring.units).double().requires_grad_()

    def step(u, h):
        return cell(u[None], h[None], 0.01)[0]

    of_input, of_state = torch.autograd.functional.jacobian(step, (u, h))
    allowed = torch.from_numpy(wiring.synapses != 0).T | torch.eye(wiring.units, dtype=torch.bool)
    assert (of_state[~allowed] == 0.0).all()
    assert (of_state[allowed] != 0.0).all()
    senses = torch.from_numpy(wiring.sensory != 0).T
    assert (of_input[~senses] == 0.0).all()
    assert (of_input[senses] != 0.0).all()


@pytest.mark.parametrize(
    'wiring', [NCP(4, *NCP_SIZES), AutoNCP(7, 40, 5), AutoNCP(2, 12, 1, sparsity=0.9, seed=3)]
)
def test_ncp_leads_from_inputs_by_inter_and_command_to_motor_neurons(wiring):
    motor = wiring.outputs
    kind = np.full(wiring.units, 'inter', dtype='<U7')
    kind[:motor] = 'motor'
    is_command = np.zeros(wiring.units, bool)
    is_command[motor:] = (wiring.synapses[motor:, :motor] != 0).any(axis=1)
    kind[is_command] = 'command'
    pairs = {(kind[i], kind[j]) for i, j in np.argwhere(wiring.synapses)}
    assert pairs == {('inter', 'command'), ('command', 'command'), ('command', 'motor')}
    assert {kind[j] for _, j in np.argwhere(wiring.sensory)} == {'inter'}
    # no one is left out
    assert (wiring.sensory != 0).any(axis=1).all()
    assert (wiring.sensory[:, kind == 'inter'] != 0).any(axis=0).all()
    assert (wiring.synapses[kind == 'inter'] != 0).any(axis=1).all()
    assert (wiring.synapses[:, kind != 'inter'] != 0).any(axis=0).all()


@pytest.mark.parametrize(
    ('make', 'text'),
    [
        (lambda: Wiring([[0, 2], [0, 0]], [[1, 1]], 1), 'other than -1, 0 and 1'),
        (lambda: Wiring([[0, 1]], [[1, 1]], 1), 'synapses has shape'),
        (lambda: Wiring([[0]], [[]], 1), 'not empty'),
        (lambda: Wiring([[1]], [[1]], 2), 'outputs is 2'),
        (lambda: Random(2, 3, sparsity=1.0), 'sparsity is 1.0'),
        (lambda: AutoNCP(2, 10, 8), 'outputs is 8, must be from 1 to units - 3 = 7'),
        (lambda: AutoNCP(2, 10, 2, sparsity=0.05), 'sparsity is 0.05'),
        (lambda: NCP(2, 5, 4, 2, 6, 2, 1, 1), 'sensory_fanout is 6, must be from 1 to the 5 inter'),
        (lambda: NCP(2, 5, 4, 2, 2, 5, 1, 1), 'inter_fanout is 5'),
        (lambda: NCP(2, 5, 4, 2, 2, 2, 1, 5), 'motor_fanin is 5'),
    ],
)
def test_wiring_that_cannot_be_is_refused_by_name(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_repair_of_neurons_that_were_left_out_is_clipped_as_in_ncps():
    ncps_wirings = pytest.importorskip('ncps.wirings')
    theirs = ncps_wirings.NCP(6, 2, 6, 4, 1, 2, 1, seed=1462)
    theirs.build(4)
    assert same(wiring_from_ncps(theirs), NCP(4, 6, 2, 6, 4, 1, 2, 1, seed=1462))


def test_no_outputs_are_refused_and_not_taken_for_all():
    with pytest.raises(ValueError, match='outputs is 0'):
        FullyConnected(3, 5, 0)
