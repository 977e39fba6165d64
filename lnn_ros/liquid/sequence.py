"""What acts on a cell between two samples: intervals, missing inputs and the hold.

A sequence is (batch, steps, ...). Sample k comes at the end of interval k, `dt[:, k]` seconds after
the sample before it, or after the state that the sequence starts from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lnn_ros.liquid import scan
from lnn_ros.liquid.cells import (
    Cell,
    require_finite,
    require_floating,
    require_interval,
    require_shape,
)
from lnn_ros.liquid.solvers import Solver, require
from lnn_ros.policy import HOLDS


def intervals(u: Tensor, dt: float | Tensor | None, stamps_ns: Tensor | None) -> Tensor:
    """Return the intervals (batch, steps), in seconds, of a sequence u (batch, steps, ...).

    Args:
        u: gives the sizes, the type and the device.
        dt: seconds, one number for all or (batch, steps).
        stamps_ns: int64 nanoseconds (batch, steps + 1), when there is no dt: when the sequence
            starts, then the stamp of each sample. They are subtracted as integers: a float32 of
            today's time is good to 128 s.

    Raises:
        ValueError: unless there is exactly one of the two, of this shape and type, and every
            interval is finite and greater than 0.
    """
    require_floating('u', u)
    batch, steps = u.shape[:2]
    if (dt is None) == (stamps_ns is None):
        raise ValueError('give dt in seconds or stamps_ns in nanoseconds, and not both')
    if stamps_ns is not None:
        if stamps_ns.dtype != torch.int64:
            raise ValueError(f'stamps_ns is {stamps_ns.dtype}, must be int64 nanoseconds')
        require_shape('stamps_ns', stamps_ns, (batch, steps + 1))
        seconds = (stamps_ns.diff(dim=1).double() * 1e-9).to(u)
    else:
        seconds = torch.as_tensor(dt, dtype=u.dtype, device=u.device)
        if seconds.dim() == 0:
            seconds = seconds.expand(batch, steps)
        require_shape('dt', seconds, (batch, steps))
    require_interval(seconds)
    return seconds


def fill(u: Tensor, mask: Tensor | None, held: Tensor | None) -> Tensor:
    """Replace each missing value by the last one that was there.

    Time goes on for a missing value: it acts for as long as it is held, and the intervals add up
    until the next one. It never becomes zero.

    Args:
        u: (batch, steps, inputs); what stands where a value is missing is never looked at.
        mask: bool, True where a value is there: (batch, steps, inputs), or (batch, steps) for whole
            samples; without it all are there.
        held: (batch, inputs), what was there last before the sequence, NaN where nothing was.

    Raises:
        ValueError: when a value is missing before there was any, is not finite, or the mask does
            not fit.
    """
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f'mask is {mask.dtype}, must be bool, True where a value is there')
        if mask.dim() == 2:
            mask = mask.unsqueeze(-1).expand(*mask.shape, u.shape[-1])
        require_shape('mask', mask, tuple(u.shape))
        if held is None:
            held = u.new_full((u.shape[0], u.shape[2]), torch.nan)
        require(
            mask[:, 0] | ~torch.isnan(held),
            held,
            'an input is missing before it was there for the first time ({}): there is nothing to '
            'hold; start the sequence where every input has been seen',
        )
        # index of the last sample that is there; 0 is what was held before the sequence
        known = torch.cat((held.unsqueeze(1), u), dim=1)
        index = torch.arange(1, u.shape[1] + 1, device=u.device).view(1, -1, 1) * mask
        u = known.gather(1, index.cummax(dim=1).values)
    require_finite(u)
    return u


def unroll(
    cell: Cell,
    u: Tensor,
    dt: float | Tensor | None = None,
    h: Tensor | None = None,
    *,
    stamps_ns: Tensor | None = None,
    hold: str = 'linear',
    before: Tensor | None = None,
) -> Tensor:
    """Run a cell over a sequence.

    Args:
        cell: any cell.
        u: (batch, steps, inputs).
        dt, stamps_ns: see `intervals`.
        h: (batch, units) to start from; zeros if not given.
        hold: one of `lnn_ros.policy.HOLDS`.
        before: (batch, inputs), the sample before the first, for `previous` and `linear`; where it
            is NaN or not given, the first sample acts over its own interval.

    Returns:
        the states (batch, steps, units) at the end of each interval.

    Raises:
        ValueError: when a shape does not fit, or an interval, an input or the state is not finite,
            or an interval is not greater than 0.
        IntegrationError: when the solver cannot keep its promise.
    """
    if hold not in HOLDS:
        raise ValueError(f"hold is '{hold}', must be one of {', '.join(HOLDS)}")
    if u.dim() != 3:
        raise ValueError(f'u has shape {tuple(u.shape)}, must be (batch, steps, {cell.inputs})')
    require_shape('u', u, (*u.shape[:2], cell.inputs))
    batch, steps = u.shape[:2]
    if steps < 1:
        raise ValueError('the sequence is empty')
    seconds = intervals(u, dt, stamps_ns)
    require_finite(u)
    if h is None:
        h = u.new_zeros(batch, cell.units)
    require_shape('h', h, (batch, cell.units))
    require_floating('h', h)
    require(torch.isfinite(h), h, 'the state has values that are not finite ({})')

    first = u[:, 0]
    if before is not None:
        require_shape('before', before, (batch, cell.inputs))
        require(~torch.isinf(before), before, 'before has values that are infinite ({})')
        first = torch.where(torch.isnan(before), first, before)
    return integrate(cell, cell.solver, u, first, seconds, h, hold)


def integrate(
    cell: Cell,
    solver: Solver,
    u: Tensor,
    first: Tensor,
    dt: Tensor,
    h: Tensor,
    hold: str,
) -> Tensor:
    """Do what `unroll` does, in the compiled core where that can; nothing is checked.

    Args:
        cell, u, h, hold: see `unroll`.
        solver: instead of the cell's own.
        first: (batch, inputs), the sample before the first; not looked at for `current`.
        dt: (batch, steps) seconds, >= 0: where it is 0, the state stays.
    """
    earlier = u if hold == 'current' else torch.cat((first.unsqueeze(1), u[:, :-1]), dim=1)
    kernel = scan.kernel_of(cell, solver.name)
    if kernel is not None and scan.covers(u, earlier, dt, h, *kernel.parameters):
        return _in_core(cell, kernel, solver, earlier, u, dt, h, hold)
    # a constant input drives all steps in one product
    driven = None if hold == 'linear' else cell.driven_by(earlier)
    states = []
    for k in range(u.shape[1]):
        path = cell.ramp(earlier[:, k], u[:, k]) if driven is None else driven[:, k]
        h = solver.advance(cell, path, h, dt[:, k, None])
        states.append(h)
    return torch.stack(states, dim=1)


def _in_core(
    cell: Cell,
    kernel: scan.Kernel,
    solver: Solver,
    earlier: Tensor,
    u: Tensor,
    dt: Tensor,
    h: Tensor,
    hold: str,
) -> Tensor:
    is_solved = hold != 'linear' and not cell.state_dependent
    steps = scan.SubSteps.of(dt, cell, solver, is_solved, h)
    acting = earlier.flatten(0, 1)
    if hold == 'linear':  # frozen at the middle of each sub-step, as `exact` and `fused` do
        end = u.flatten(0, 1)
        if steps.interval is not None:
            # index_select: the gradient of plain indexing sorts
            acting, end = (x.index_select(0, steps.interval) for x in (acting, end))
        acting = torch.lerp(acting, end, steps.middle)
    states = scan.run(kernel, steps, hold != 'linear', scan.driven_by(cell, acting), h)
    return states.view(*u.shape[:2], cell.units)
