"""The networks that `lnn_ros bench rates` compares: a recurrent part and one readout for all.

Sequences are time-major here, (steps, batch, ...), since the loop runs over time. Whatever does not
depend on the state is computed before the loop, for all nets alike. Everything works under
`torch.vmap`, so that the seeds of a net train side by side at about the price of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from lnn_ros.liquid.cells import Cell, NeuralLTC, SynapticLTC
from lnn_ros.liquid.network import exact_param_count
from lnn_ros.liquid.sequence import unroll
from lnn_ros.training import neural_scan

INPUTS, OUTPUTS = 2, 4


@dataclass(frozen=True)
class SubSteps:
    """The sub-steps of a whole batch in one row, so that no sample waits for another's.

    A sample of 1 s among others of 10 ms would make `Solver.advance` compute 20 sub-steps for all
    of them; here each sequence goes on with its own next sub-step, and only the shorter sequences
    pad, with widths of 0.

    Attributes:
        interval: (sub-steps, batch), which interval each belongs to.
        middle: (sub-steps, batch, 1), its middle as a fraction of that interval.
        width: (sub-steps, batch, 1) seconds.
        last: (steps, batch), the last sub-step of each interval.
        whole: whether each interval is one sub-step.
    """

    interval: Tensor
    middle: Tensor
    width: Tensor
    last: Tensor
    whole: bool

    @classmethod
    def of(cls, dt: Tensor, max_step: float, unfolds: int) -> SubSteps:
        """Divide intervals (steps, batch), in seconds, as `Solver` does for `exact` and `fused`."""
        steps, batch = dt.shape
        count = torch.ceil(dt * ((1.0 - 1e-6) / max_step)).clamp_(min=unfolds).long()
        end = count.cumsum(dim=0)
        row = torch.arange(int(end[-1].max())).unsqueeze(1).expand(-1, batch).contiguous()
        interval = torch.searchsorted(end.T.contiguous(), row.T.contiguous(), right=True).T
        padding = interval == steps
        interval = interval.clamp(max=steps - 1)
        of = count.gather(0, interval)
        middle = (row - (end - count).gather(0, interval) + 0.5) / of
        width = (dt.gather(0, interval) / of).masked_fill(padding, 0.0)
        return cls(interval, middle.unsqueeze(-1), width.unsqueeze(-1), end - 1, len(row) == steps)


class Net(nn.Module):
    """Readout of [state, newest input]; a subclass gives the states.

    Args:
        features: size of the states.
        readout: [state, input] -> outputs; None for the one of this benchmark, 32 wide inside.
    """

    def __init__(self, features: int, readout: nn.Module | None = None) -> None:
        super().__init__()
        self.readout = readout or nn.Sequential(
            nn.Linear(features + INPUTS, 32), nn.SiLU(), nn.Linear(32, OUTPUTS)
        )

    def plan(self, dt: Tensor, unfolds: int = 1) -> Any:
        """Return what `states` needs of dt (steps, batch); it is the same for all seeds.

        A net with a solver takes at least `unfolds` sub-steps.
        """
        return dt

    def states(self, u: Tensor, plan: Any) -> Tensor:
        """Return (steps, batch, features) for u (steps, batch, inputs), which was 0 before."""
        raise NotImplementedError

    def forward(self, u: Tensor, plan: Any) -> Tensor:
        """Return the outputs (steps, batch, outputs)."""
        return self.readout(torch.cat((self.states(u, plan), u), dim=-1))


class Liquid(Net):
    """One of our cells, or several on top of each other, behind an optional input mapping.

    Args:
        cells: the first takes the mapped input, each other the states before it; all have solvers
            `exact` or `fused`.
        hold: of the mapped input, see `lnn_ros.policy.HOLDS`.
        mapping: (..., inputs) -> (..., inputs of the first cell), or None.
        readout: see `Net`.
    """

    def __init__(
        self,
        cells: list[Cell],
        hold: str,
        mapping: nn.Module | None = None,
        readout: nn.Module | None = None,
    ) -> None:
        super().__init__(sum(cell.units for cell in cells), readout)
        self.mapping = mapping or nn.Identity()
        self.cells: Any = nn.ModuleList(cells)
        self.hold = hold

    def plan(self, dt: Tensor, unfolds: int = 1) -> SubSteps | Tensor:
        solver = self.cells[0].solver
        if solver.name not in ('exact', 'fused'):
            return dt
        return SubSteps.of(dt, solver.max_step, max(unfolds, solver.unfolds))

    def states(self, u: Tensor, plan: SubSteps | Tensor) -> Tensor:
        x, before = self.mapping(u), self.mapping(torch.zeros_like(u[:1]))
        states = []
        for cell in self.cells:
            x = self._run(cell, x, before, plan)
            before = torch.zeros_like(x[:1])
            states.append(x)
        return torch.cat(states, dim=-1)

    def _run(self, cell: Cell, x: Tensor, before: Tensor, plan: SubSteps | Tensor) -> Tensor:
        if isinstance(plan, Tensor):
            previous = before[0].expand_as(x[0])
            states = unroll(cell, x.transpose(0, 1), plan.T, hold=self.hold, before=previous)
            return states.transpose(0, 1)

        def at_sub_steps(x: Tensor) -> Tensor:
            if plan.whole:  # each interval is one: spare the gathering and its gradient
                return x
            return x.gather(0, plan.interval.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

        earlier = torch.cat((before.expand_as(x[:1]), x[:-1]))
        if self.hold == 'linear':
            acting = torch.lerp(at_sub_steps(earlier), at_sub_steps(x), plan.middle)
        else:
            acting = at_sub_steps(x if self.hold == 'current' else earlier)
        after = self._scan(cell, cell.driven_by(acting), plan.width)
        if plan.whole:
            return after
        return after.gather(0, plan.last.unsqueeze(-1).expand(-1, -1, cell.units))

    def _scan(self, cell: Cell, driven: Tensor, widths: Tensor) -> Tensor:
        exact = cell.solver.name == 'exact'
        if exact and isinstance(cell, NeuralLTC):
            return neural_scan.run(cell, driven, widths)
        field = _dense(cell) if isinstance(cell, SynapticLTC) else cell.field
        h, after = driven.new_zeros(driven.shape[1], cell.units), []
        # unbound: each driven[k] would make a gradient of zeros as large as the whole of it
        for now, width in zip(driven.unbind(), widths.unbind(), strict=True):
            rate, equilibrium = field(now, h)
            elapsed = width * rate
            kept = torch.exp(-elapsed) if exact else 1.0 / (1.0 + elapsed)
            h = equilibrium + (h - equilibrium) * kept
            after.append(h)
        return torch.stack(after)


def _dense(cell: SynapticLTC) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the cell's field with the synapses in matrices, which are made only once.

    One product sums all synapses into a neuron: for a complete wiring that is several times as fast
    as to gather and to scatter them.
    """
    synapses, units = cell.synapses, cell.units
    index = synapses.target * units + synapses.source

    def place(values: Tensor) -> Tensor:
        none = values.new_zeros(units * units)
        return none.index_put((index,), values).view(units, 1, units)

    w = softplus(synapses.raw_w)
    sigma, offset = place(synapses.sigma), place(-synapses.sigma * synapses.mu)
    weights = torch.cat((place(w), place(w * synapses.erev)), dim=1).mT
    cm = softplus(cell.raw_cm)

    def field(driven: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        of_input, current_of_input = driven.chunk(2, dim=-1)
        gate = torch.sigmoid(torch.addcmul(offset, sigma, h))  # (target, batch, source)
        conductance, current = torch.matmul(gate, weights).unbind(dim=-1)
        g = of_input + conductance.mT
        return g / cm, (current_of_input + current.mT) / g

    return field


def mlp(width: int, outputs: int) -> nn.Module:
    """Return an input mapping."""
    return nn.Sequential(nn.Linear(INPUTS, width), nn.SiLU(), nn.Linear(width, outputs))


class GRU(Net):
    """Cho et al. 2014, as in torch; with dt it also sees dt in seconds and log(dt / 0.1 s)."""

    def __init__(
        self, units: int, with_dt: bool, inputs: int = INPUTS, readout: nn.Module | None = None
    ) -> None:
        super().__init__(units, readout)
        self.with_dt = with_dt
        # it holds the parameters and their initialisation; torch.vmap cannot run it
        self.cell = nn.GRUCell(inputs + 2 * with_dt, units)

    def states(self, u: Tensor, plan: Tensor) -> Tensor:
        if self.with_dt:
            dt = plan.unsqueeze(-1)
            u = torch.cat((u, dt, torch.log(dt / 0.1)), dim=-1)
        cell, states = self.cell, []
        inputs = linear(u, cell.weight_ih, cell.bias_ih)
        h = u.new_zeros(u.shape[1], cell.hidden_size)
        for now in inputs.unbind():
            reset, update, new = now.chunk(3, dim=-1)
            of_reset, of_update, of_new = linear(h, cell.weight_hh, cell.bias_hh).chunk(3, dim=-1)
            z = torch.sigmoid(update + of_update)
            h = torch.lerp(torch.tanh(new + torch.sigmoid(reset + of_reset) * of_new), h, z)
            states.append(h)
        return torch.stack(states)


class CfC(Net):
    """The closed-form continuous cell of ncps 1.0.1, its backbone as wide as its state."""

    def __init__(self, units: int) -> None:
        from ncps.torch import CfCCell

        super().__init__(units)
        self.units = units
        self.cell = CfCCell(INPUTS, units, backbone_units=units, backbone_layers=1)

    def states(self, u: Tensor, plan: Tensor) -> Tensor:
        h, states = u.new_zeros(u.shape[1], self.units), []
        for k in range(len(u)):
            # (batch, 1): with the (batch,) that its own loop makes, ncps raises or is wrong
            h = self.cell(u[k], h, plan[k].unsqueeze(-1))[1]
            states.append(h)
        return torch.stack(states)


def matched(make: Callable[[int], Net], parameters: int) -> int:
    """Return the number of units that brings a net closest to a parameter count."""

    def distance(units: int) -> int:
        return abs(exact_param_count(make(units)) - parameters)

    best = 2
    while distance(best + 1) < distance(best):
        best += 1
    return best
