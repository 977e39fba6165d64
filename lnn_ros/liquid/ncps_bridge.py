"""To and from the LTC of ncps 1.0.1 (https://github.com/mlech26l/ncps), with equal outputs.

Reading one needs no ncps import, writing one does. The bridge goes to the synaptic form under the
solver `fused` with ncps's unfolds; another solver may be set afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lnn_ros.liquid.cells import Synapses, SynapticLTC, assign
from lnn_ros.liquid.solvers import Solver
from lnn_ros.liquid.wiring import wiring_from_ncps


@torch.no_grad()
def from_ncps(module: Any) -> SynapticLTC:
    """Turn an `ncps.torch.LTC` or `LTCCell` into ours: `cell.read(cell(u, h, dt))` is its output.

    Over a sequence, its output is that of `unroll(..., hold='current')`.

    ncps keeps a number for every pair of neurons; those of synapses that are not there are left.

    Raises:
        ValueError: when it is no LTC, has mixed memory (an LSTM beside it), an epsilon of its own,
            or weights that must be positive and are not, which ncps allows.
    """
    if getattr(module, 'use_mixed', False):
        raise ValueError('this ncps LTC has mixed memory, an LSTM beside it, which we do not have')
    theirs = getattr(module, 'rnn_cell', module)
    if not hasattr(theirs, '_ode_unfolds'):
        raise ValueError(f'{type(module).__name__} is no LTC of ncps')
    if theirs._epsilon != 1e-8:
        raise ValueError(f'its epsilon is {theirs._epsilon}, ours is that of ncps, 1e-8')
    cell = SynapticLTC(
        wiring_from_ncps(theirs._wiring),
        solver=Solver('fused', max_step=math.inf, unfolds=theirs._ode_unfolds),
    ).to(theirs.vleak)
    implicit = theirs._implicit_param_constraints

    def take(ours: torch.nn.Module, **values: Tensor) -> None:
        """Assign numbers of ncps, which are raw for positive ones if its constraint is implicit."""
        for name, value in values.items():
            raw = getattr(ours, f'raw_{name}', None)
            if raw is None:
                getattr(ours, name).copy_(value)
            elif implicit:
                raw.copy_(value)
            else:
                # what ncps clipped to 0 becomes its epsilon: softplus has no 0
                assign(ours, **{name: torch.where(value == 0.0, 1e-8, value)})

    take(cell, gl=theirs.gleak, vl=theirs.vleak, cm=theirs.cm)
    for synapses, prefix in ((cell.synapses, ''), (cell.sensory, 'sensory_')):
        place = (synapses.source, synapses.target)
        names = ('w', 'sigma', 'mu', 'erev')
        take(synapses, **{name: getattr(theirs, prefix + name)[place] for name in names})
    for name in ('input_w', 'input_b', 'output_w', 'output_b'):
        if hasattr(theirs, name):
            getattr(cell, name).copy_(getattr(theirs, name))
    return cell


@torch.no_grad()
def to_ncps(cell: SynapticLTC) -> Any:
    """Turn a synaptic cell into an `ncps.torch.LTC` with equal outputs.

    Raises:
        ValueError: unless its solver is `fused` with no max_step, the only one that ncps has.
    """
    from ncps.torch import LTC
    from ncps.wirings import Wiring as NcpsWiring

    solver = cell.solver
    if solver.name != 'fused' or not math.isinf(solver.max_step):
        raise ValueError(
            f'ncps has the solver fused with unfolds alone, this cell has {solver.name} with '
            f'max_step {solver.max_step} s; set Solver("fused", max_step=math.inf, unfolds=6)'
        )
    ours = cell.wiring
    wiring = NcpsWiring.from_config(
        {
            'units': ours.units,
            'adjacency_matrix': ours.synapses.tolist(),
            'sensory_adjacency_matrix': ours.sensory.tolist(),
            'input_dim': ours.inputs,
            'output_dim': ours.outputs,
        }
    )
    module = LTC(ours.inputs, wiring, ode_unfolds=solver.unfolds).to(cell.vl)
    theirs = module.rnn_cell
    theirs.gleak.copy_(cell.raw_gl)
    theirs.vleak.copy_(cell.vl)
    theirs.cm.copy_(cell.raw_cm)

    def put(synapses: Synapses, prefix: str) -> None:
        for name, value in (
            ('w', synapses.raw_w),
            ('sigma', synapses.sigma),
            ('mu', synapses.mu),
            ('erev', synapses.erev),
        ):
            getattr(theirs, prefix + name)[synapses.source, synapses.target] = value

    put(cell.synapses, '')
    put(cell.sensory, 'sensory_')
    for name in ('input_w', 'input_b', 'output_w', 'output_b'):
        getattr(theirs, name).copy_(getattr(cell, name))
    return module
