"""Liquid Time-Constant cells.

A cell is a vector field and nothing else: `drive` is the part of it that depends on the input
alone, so that a sequence computes it once for all its steps, and `field` gives the liquid time
constant and the equilibrium at a state. `lnn_ros.liquid.solvers` integrates any cell that has these
two.

Hasani, Lechner, Amini, Rus, Grosu, "Liquid Time-constant Networks", AAAI 2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lnn_ros.liquid import solvers


class NeuralLTC(nn.Module):
    """The neural form (AAAI 2021, eq. 1, with an input current).

        dh/dt = (-h + leak + drive u + f (reversal - h)) / tau
        f     = gain * sigmoid(gate_input u + gate_recurrent h + gate_bias)

    Hence the liquid time constant tau / (1 + f) and the equilibrium
    (leak + drive u + f reversal) / (1 + f). `tau` and `gain` are positive by construction.

    Args:
        inputs: size of u.
        units: size of h.
        tau_range: (shortest, longest) resting time constant in seconds; the units start out spread
            over it log-uniformly.
        max_step: longest sub-step of the solver, in seconds.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        tau_range: tuple[float, float] = (0.02, 2.0),
        max_step: float = 0.05,
    ) -> None:
        super().__init__()
        shortest, longest = tau_range
        if not 0.0 < shortest <= longest:
            raise ValueError(f'tau_range {tau_range} s must be positive and ascending')
        if not max_step > 0.0:
            raise ValueError(f'max_step is {max_step} s, but it must be greater than 0 s')
        self.max_step = max_step
        spread = 1.0 / math.sqrt(inputs + units)
        self.gate_input = nn.Parameter(torch.randn(units, inputs) * spread)
        self.gate_recurrent = nn.Parameter(torch.randn(units, units) * spread)
        self.gate_bias = nn.Parameter(torch.zeros(units))
        self.log_gain = nn.Parameter(torch.zeros(units))
        self.drive = nn.Parameter(torch.randn(units, inputs) / math.sqrt(inputs))
        sign = torch.where(torch.arange(units) % 2 == 0, 1.0, -1.0)
        self.reversal = nn.Parameter(3.0 * sign)
        self.leak = nn.Parameter(-0.8 * 3.0 * sign)
        exponents = torch.rand(units) * (math.log(longest) - math.log(shortest))
        self.log_tau = nn.Parameter(exponents + math.log(shortest))

    @property
    def units(self) -> int:
        """Size of the state."""
        return self.gate_bias.numel()

    def driven_by(self, u: Tensor) -> Tensor:
        """Return the input's part of the field: (..., inputs) -> (..., 2 * units)."""
        weight = torch.cat((self.gate_input, self.drive))
        return nn.functional.linear(u, weight, torch.cat((self.gate_bias, self.leak)))

    def field(self, driven: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 / liquid time constant in 1/s, equilibrium), both (..., units)."""
        into_gate, current = driven.chunk(2, dim=-1)
        gate = torch.sigmoid(into_gate + nn.functional.linear(h, self.gate_recurrent))
        f = self.log_gain.exp() * gate
        opening = 1.0 + f
        return opening * torch.exp(-self.log_tau), (current + f * self.reversal) / opening

    def forward(self, u: Tensor, h: Tensor, dt: float | Tensor) -> Tensor:
        """Return the state after `dt` seconds under the constant input `u`.

        Args:
            u: (batch, inputs).
            h: (batch, units).
            dt: seconds, one number or (batch,): each sample may have its own.

        Raises:
            ValueError: when a `dt` is not finite or not greater than 0, or `u` is not finite.
        """
        interval = torch.as_tensor(dt, dtype=h.dtype, device=h.device)
        if interval.dim() > 1 or (interval.dim() == 1 and interval.shape[0] != h.shape[0]):
            raise ValueError(
                f'dt has shape {tuple(interval.shape)}, must be one number or ({h.shape[0]},)'
            )
        if not bool((torch.isfinite(interval) & (interval > 0.0)).all()):
            raise ValueError(
                f'dt is {dt} s, but every interval must be finite and greater than 0 s'
            )
        if not bool(torch.isfinite(u).all()):
            raise ValueError('the input has values that are not finite')
        interval = interval.reshape(-1, 1).expand(h.shape[0], 1)
        return solvers.exact(self, self.driven_by(u), h, interval, self.max_step)
