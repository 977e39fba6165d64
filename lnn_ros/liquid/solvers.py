"""Integration of a cell over one interval, by any of six methods behind one interface.

Every cell's field has the form dh/dt = rate * (equilibrium - h) with a positive rate; both may
depend on h and on the input. The methods differ in what they do with it during a sub-step s:

    exact     h <- equilibrium + (h - equilibrium) exp(-s rate), both frozen (exponential Euler)
    fused     h <- (h + s rate equilibrium) / (1 + s rate), the semi-implicit Euler of the LTC paper
    euler, midpoint, rk4    the classical explicit methods, with sub-steps short enough to be stable
    dopri5    Dormand-Prince 4(5), which chooses its sub-steps by the error that it makes

`exact` and `fused` are stable for every sub-step and never leave the interval between h and the
equilibrium. Sources: Hasani et al., "Liquid Time-constant Networks", AAAI 2021 (fused); Hochbruck
and Ostermann, "Exponential integrators", Acta Numerica 2010 (exact); Dormand and Prince, "A family
of embedded Runge-Kutta formulae", 1980.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Path = Callable[[Tensor], Tensor]
"""The input's part of a field at a fraction 0 ... 1 of the interval, itself (batch, 1)."""


class Field(Protocol):
    """What a solver asks of a cell."""

    state_dependent: bool
    """Whether `field` depends on h."""

    def field(self, driven: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (rate in 1/s, equilibrium), both (batch, units)."""

    def fastest(self, h: Tensor) -> Tensor:
        """Return what an explicit solver must not step over, in 1/s, (batch, 1)."""


class IntegrationError(ArithmeticError):
    """A solver that cannot keep its promise (step limit, tolerance) and returns nothing instead."""


def require(ok: Tensor, values: Tensor, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error` unless all is `ok`; `{}` in `message` becomes the first value that is not.

    An exported graph keeps the check; there it raises RuntimeError.
    """
    if torch.compiler.is_exporting():
        torch._assert_async(ok.all(), message.format('refused'))
    elif not bool(ok.all()):
        raise error(message.format(f'{values[~ok].flatten()[0].item():g}'))


@dataclass(frozen=True)
class Solver:
    """How an interval is integrated.

    Attributes:
        name: `exact`, `fused`, `euler`, `midpoint`, `rk4` or `dopri5`.
        max_step: longest sub-step, in seconds; math.inf for no limit but `unfolds`.
        unfolds: fewest sub-steps of an interval. (`exact` needs neither of the two where it is the
            true solution: for a cell whose field depends on the input alone, held constant.)
        rtol, atol: dopri5 alone: largest error of a sub-step, relative to |h| and absolute.
        max_steps: most sub-steps of an interval, for dopri5 most attempts; beyond it,
            IntegrationError. An exported graph holds this many sub-steps, so make it small there.
    """

    name: str = 'exact'
    max_step: float = 0.1
    unfolds: int = 1
    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise ValueError(f"solver is '{self.name}', must be one of {', '.join(SOLVERS)}")
        if not self.max_step > 0.0:
            raise ValueError(f'max_step is {self.max_step} s, but it must be greater than 0 s')
        for name in ('unfolds', 'max_steps'):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f'{name} is {getattr(self, name)}, must be a whole number')
        if not 1 <= self.unfolds <= self.max_steps:
            raise ValueError(
                f'unfolds is {self.unfolds}, must be from 1 to max_steps, {self.max_steps}'
            )
        if not (self.rtol >= 0.0 and self.atol >= 0.0 and self.rtol + self.atol > 0.0):
            raise ValueError(
                f'rtol {self.rtol} and atol {self.atol} must not be negative, nor both 0'
            )

    def advance(self, cell: Field, driven: Tensor | Path, h: Tensor, dt: Tensor) -> Tensor:
        """Return the state `dt` seconds later.

        Args:
            cell: has the field.
            driven: the input's part of the field, as the cell's `driven_by` gives it: (batch, ...)
                for a constant input, or a function for one that changes during the interval.
            h: (batch, units).
            dt: (batch, 1) seconds, >= 0. Where it is 0, h comes back as it was (to rounding): a
                sequence uses that for an input that changes without time passing. Callers check
                the sign.

        Raises:
            IntegrationError: when an interval takes more than `max_steps` sub-steps.
        """
        if self.name == 'dopri5':
            return self._dopri5(cell, driven, h, dt)
        rule = _RULES[self.name]
        if self.name == 'exact' and not cell.state_dependent and not callable(driven):
            return rule(_during(cell, driven, dt, dt), h, dt)
        steps, most = self.sub_steps(cell, dt, h)
        step = dt / steps
        for i in range(most):
            after = rule(_during(cell, driven, i / steps, 1.0 / steps), h, step)
            # every sample takes its own number of sub-steps, so that a batch equals its samples
            h = after if most == 1 else torch.where(i < steps, after, h)
        return h

    def sub_steps(self, cell: Field, dt: Tensor, h: Tensor) -> tuple[Tensor, int]:
        """Return how many equal sub-steps each interval takes, as floats, and the most of them.

        Args:
            cell: has the field; only the explicit methods look at it.
            dt: seconds, any shape.
            h: (batch, units), the states; only the explicit methods look at their size.

        Raises:
            IntegrationError: when an interval takes more than `max_steps` sub-steps.
        """
        # the margin keeps a dt of a whole number of steps at that number whatever the precision
        steps = torch.ceil(dt.detach() * ((1.0 - 1e-6) / self.max_step)).clamp_(min=self.unfolds)
        if self.name in _STABLE:
            # Half of the way to the limit: at the limit itself an error never dies out. Euler then
            # stays within the state bounds too.
            fastest = cell.fastest(h).detach()
            stable = torch.ceil(dt.detach() * fastest / (0.5 * _STABLE[self.name]))
            steps = torch.maximum(steps, stable)
        return steps, self._most(steps, dt)

    def _most(self, steps: Tensor, dt: Tensor) -> int:
        """Return how often to loop, after refusing what needs more than `max_steps`."""
        if math.isinf(self.max_step) and self.name not in _STABLE:
            return self.unfolds
        if torch.compiler.is_exporting() and self.max_steps > _MOST_EXPORTED:
            raise ValueError(
                f'max_steps is {self.max_steps}, and an exported graph holds that many sub-steps: '
                f'export a solver with at most {_MOST_EXPORTED}'
            )
        if steps.numel() == 0:
            return 1
        require(
            steps <= self.max_steps,
            dt,
            f'{self.name}: an interval of {{}} s takes more than max_steps = {self.max_steps} '
            f'sub-steps; allow more{self._way_out()}',
            IntegrationError,
        )
        return self.max_steps if torch.compiler.is_exporting() else int(steps.max())

    def _way_out(self) -> str:
        return ', or use exact' if self.name in _STABLE else ' or raise max_step'

    def _dopri5(self, cell: Field, driven: Tensor | Path, h: Tensor, dt: Tensor) -> Tensor:
        """Integrate each sample with sub-steps of its own.

        The sub-steps count as constants in gradients; the last one, which ends the interval,
        carries the gradient with respect to dt.
        """
        eps = torch.finfo(h.dtype).eps
        if max(self.rtol, self.atol) < 8.0 * eps:
            raise IntegrationError(
                f'dopri5: rtol {self.rtol:g} and atol {self.atol:g} are below what {h.dtype} can '
                f'hold, {8.0 * eps:.1g}; allow a larger error or use float64'
            )
        end = dt.detach()
        longest = (end / self.unfolds).clamp(max=self.max_step)
        step = torch.minimum(longest, 0.5 / cell.fastest(h).detach())
        time = torch.zeros_like(end)
        done = end <= 0.0
        whole = torch.where(done, 1.0, dt)
        for _ in range(self.max_steps):
            left = dt - time
            is_last = left.detach() <= step
            step = torch.where(is_last, left, step)
            during = _during(cell, driven, time / whole, step / whole)
            slopes, after = [_slope(during, h, 0.0)], h
            for c, row in _DOPRI5_STAGES:
                after = h + step * _weighted(row, slopes)
                slopes.append(_slope(during, after, c))
            with torch.no_grad():
                scale = self.atol + self.rtol * torch.maximum(h.abs(), after.abs())
                error = step * _weighted(_DOPRI5_ERROR, slopes) / scale
                error = error.square().mean(dim=-1, keepdim=True).sqrt().nan_to_num(math.inf)
                accepted = (error <= 1.0) & ~done
                time = torch.where(accepted, torch.where(is_last, end, time + step), time)
                # the usual controller of an error of order 5, with a margin against rejections
                factor = (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
                step = torch.minimum(step * factor, longest)
            h = torch.where(accepted, after, h)
            done = done | (accepted & is_last)
            if not torch.compiler.is_exporting() and bool(done.all()):
                break
        require(
            done,
            end,
            f'dopri5: an interval of {{}} s does not meet rtol {self.rtol:g}, atol {self.atol:g} '
            f'within max_steps = {self.max_steps}; allow more steps or a larger error',
            IntegrationError,
        )
        return h


_During = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""A field at a state and at a fraction 0 ... 1 of a sub-step."""


def _during(cell: Field, driven: Tensor | Path, start: Tensor, width: Tensor) -> _During:
    """Return the field during the sub-step that begins at fraction `start` of the interval."""
    if not callable(driven):
        return lambda h, _: cell.field(driven, h)
    return lambda h, c: cell.field(driven((start + c * width).clamp(max=1.0)), h)


def _slope(during: _During, h: Tensor, c: float) -> Tensor:
    rate, equilibrium = during(h, c)
    return rate * (equilibrium - h)


# exact and fused freeze a changing input at the middle of the sub-step, which is of second order.
def _exact(during: _During, h: Tensor, step: Tensor) -> Tensor:
    rate, equilibrium = during(h, 0.5)
    return equilibrium + (h - equilibrium) * torch.exp(-step * rate)


def _fused(during: _During, h: Tensor, step: Tensor) -> Tensor:
    rate, equilibrium = during(h, 0.5)
    return (h + step * rate * equilibrium) / (1.0 + step * rate)


def _euler(during: _During, h: Tensor, step: Tensor) -> Tensor:
    return h + step * _slope(during, h, 0.0)


def _midpoint(during: _During, h: Tensor, step: Tensor) -> Tensor:
    return h + step * _slope(during, h + 0.5 * step * _slope(during, h, 0.0), 0.5)


def _rk4(during: _During, h: Tensor, step: Tensor) -> Tensor:
    first = _slope(during, h, 0.0)
    second = _slope(during, h + 0.5 * step * first, 0.5)
    third = _slope(during, h + 0.5 * step * second, 0.5)
    fourth = _slope(during, h + step * third, 1.0)
    return h + step / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)


_RULES = {
    'exact': _exact,
    'fused': _fused,
    'euler': _euler,
    'midpoint': _midpoint,
    'rk4': _rk4,
}
SOLVERS = (*_RULES, 'dopri5')
"""Names of all solvers."""

EXACT = Solver()
"""The default; docs/network.md says what each solver costs and how far it is off."""

_MOST_EXPORTED = 100

_STABLE = {'euler': 2.0, 'midpoint': 2.0, 'rk4': 2.785}
"""Largest stable product of sub-step and rate of the explicit methods on dh/dt = -rate h."""


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [w * k for w, k in zip(weights, slopes, strict=True) if w != 0.0]
    return torch.stack(terms).sum(dim=0)


# (node, weights of the slopes so far); the last row is the solution of order 5 itself.
_DOPRI5_STAGES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
# solution of order 5 minus the one of order 4
_DOPRI5_ERROR = (
    71 / 57600,
    0.0,
    -71 / 16695,
    71 / 1920,
    -17253 / 339200,
    22 / 525,
    -1 / 40,
)
