"""Integration of a cell over an interval during which its input is constant."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Field(Protocol):
    """What a solver asks of a cell."""

    def field(self, driven: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (rate in 1/s, equilibrium), both (batch, units)."""


def exact(cell: Field, driven: Tensor, h: Tensor, dt: Tensor, max_step: float) -> Tensor:
    """Exponential Euler in equal sub-steps of at most `max_step` seconds.

    Rate and equilibrium are frozen over a sub-step; the linear equation that is left is solved
    exactly: h <- equilibrium + (h - equilibrium) exp(-dt * rate). It is stable for every dt, it
    never leaves the interval between h and the equilibrium, and it tends to h as dt tends to 0.

    Args:
        driven: (batch, ...) the input's part of the field, as the cell's `driven_by` gives it.
        h: (batch, units).
        dt: (batch, 1) seconds, >= 0. Where it is 0, h comes back as it was (to rounding): a
            sequence uses that for an input that changes without time passing. Callers check the
            sign.
        max_step: seconds.
    """
    # the margin keeps a dt of a whole number of steps at that number whatever the precision
    steps = torch.ceil(dt * ((1.0 - 1e-6) / max_step)).clamp_(min=1.0)
    most = int(steps.max())
    step = dt / steps
    for i in range(most):
        rate, equilibrium = cell.field(driven, h)
        after = equilibrium + (h - equilibrium) * torch.exp(-step * rate)
        # every sample takes its own number of sub-steps, so that a batch equals its samples
        h = after if most == 1 else torch.where(i < steps, after, h)
    return h
