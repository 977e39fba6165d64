"""The cells that the tests of the network run through, small and in float64."""

import pytest
import torch

from lnn_ros.liquid.cells import LiquidCell, NeuralLTC, SynapticLTC
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import AutoNCP

torch.set_num_threads(1)


def _make_cell(kind, inputs=3, units=7, solver=None, seed=0, dtype=torch.float64):
    """Return a cell none of whose parameters is at a value that could hide a mistake."""
    torch.manual_seed(seed)
    solver = solver or Solver()
    cell = {
        'neural': lambda: NeuralLTC(inputs, units, (0.05, 1.0), solver),
        'synaptic': lambda: SynapticLTC(AutoNCP(inputs, units, 2), (0.05, 1.0), solver),
        'liquid': lambda: LiquidCell(inputs, units, solver),
    }[kind]().to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return cell


@pytest.fixture
def make_cell():
    return _make_cell


@pytest.fixture(params=['neural', 'synaptic', 'liquid'])
def kind(request):
    return request.param
