"""The networks that `lnn_ros bench rates` compares: a recurrent part and one readout for all.

Sequences are time-major here, (steps, batch, ...), since the loop of most peers runs over time.
Whatever does not depend on the state is computed before the loop, for all nets alike. Everything
works under `torch.vmap`, so that the seeds of a net train side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lnn_ros.liquid.cells import Cell
from lnn_ros.liquid.network import exact_param_count
from lnn_ros.liquid.sequence import integrate

INPUTS, OUTPUTS = 2, 4


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
        cells: the first takes the mapped input, each other the states before it.
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

    def plan(self, dt: Tensor, unfolds: int = 1) -> tuple[Tensor, int]:
        return dt.T, unfolds

    def states(self, u: Tensor, plan: tuple[Tensor, int]) -> Tensor:
        dt, unfolds = plan
        x = self.mapping(u).transpose(0, 1)
        before = self.mapping(torch.zeros_like(u[0]))
        states = []
        for cell in self.cells:
            solver = replace(cell.solver, unfolds=max(unfolds, cell.solver.unfolds))
            h = u.new_zeros(len(dt), cell.units)
            x = integrate(cell, solver, x, before, dt, h, self.hold)
            before = torch.zeros_like(h)
            states.append(x)
        return torch.cat(states, dim=-1).transpose(0, 1)


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
