"""Cells over whole sequences in the compiled core, forward and back, as functions for autograd.

The torch cells say what is computed, and serve where this does not: `kernel_of` and `covers` tell.
The backward pass recomputes all but the states at the ends of the sub-steps, so that a sequence
takes little more memory than its states; docs/network.md derives it. It cannot be differentiated
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import softplus

from lnn_ros.core import compiled_module
from lnn_ros.liquid.cells import Cell, LiquidCell, NeuralLTC, Synapses, SynapticLTC, positive
from lnn_ros.liquid.solvers import Solver

_MODULES = {torch.float32: '_core', torch.float64: '_core_double'}
_FASTEST = -1
LIQUID, NEURAL, SYNAPTIC, SYNAPTIC_FUSED = range(4)
"""The forms, as core.h numbers them."""


@dataclass(frozen=True)
class SubSteps:
    """The equal sub-steps of a batch of sequences, end to end: each has as many as it needs.

    Attributes:
        offset: (batch + 1), where each sequence's sub-steps begin and the last one's end.
        interval: (sub-steps,), which of the (batch * steps) intervals each belongs to; None where
            every interval is one sub-step.
        middle: (sub-steps, 1), its middle as a fraction of that interval.
        width: (sub-steps,) seconds.
        last: (batch * steps,), the last sub-step of each interval.
    """

    offset: Tensor
    interval: Tensor | None
    middle: Tensor | float
    width: Tensor
    last: Tensor

    @classmethod
    def of(
        cls, dt: Tensor, cell: Cell, solver: Solver, is_solved: bool, h: Tensor
    ) -> SubSteps:
        """Divide intervals (batch, steps), in seconds, as `Solver.advance` does.

        Args:
            is_solved: whether a whole interval is one sub-step however long it is.
            h: (batch, units), where the sequences start.

        Raises:
            IntegrationError: when an interval takes more than `max_steps` sub-steps.
        """
        batch, steps = dt.shape
        last = torch.arange(batch * steps)
        counts, most = (dt, 1) if is_solved else solver.sub_steps(cell, dt, h)
        if most == 1:
            return cls(torch.arange(batch + 1) * steps, None, 0.5, dt.reshape(-1), last)
        count = counts.flatten().long()
        end = count.cumsum(dim=0)
        interval = torch.repeat_interleave(last, count)
        of = counts.flatten().index_select(0, interval)
        within = torch.arange(len(interval)) - (end - count).index_select(0, interval)
        middle = (within + 0.5) / of
        offset = torch.cat((end.new_zeros(1), end[steps - 1 :: steps]))
        width = dt.reshape(-1).index_select(0, interval) / of
        return cls(offset, interval, middle.unsqueeze(-1), width, end - 1)


@dataclass(frozen=True)
class Kernel:
    """What the compiled core computes for a cell; its parameters in the order of `_core.scan`.

    wiring: source and target of the synapses, if there are any.
    """

    form: int
    parameters: tuple[Tensor, ...] = ()
    wiring: tuple[Tensor, ...] = ()


def kernel_of(cell: Cell, solver: str) -> Kernel | None:
    """Return what serves this cell and this solver, or None if nothing does."""
    if type(cell) is LiquidCell and solver == 'exact':
        return Kernel(LIQUID)
    if type(cell) is NeuralLTC and solver == 'exact':
        rate, gain = torch.exp(-cell.log_tau), cell.log_gain.exp()
        return Kernel(NEURAL, (rate, cell.gate_recurrent, gain, cell.reversal))
    if type(cell) is SynapticLTC and solver in ('exact', 'fused'):
        form = SYNAPTIC if solver == 'exact' else SYNAPTIC_FUSED
        rate = 1.0 / positive(cell.raw_cm)
        return Kernel(form, (rate, *_numbers(cell.synapses)), _wiring(cell.synapses))
    return None


_is_in_torch: ContextVar[bool] = ContextVar('is_in_torch', default=False)


@contextmanager
def in_torch() -> Iterator[None]:
    """Have torch compute what the compiled core would: slower, but differentiable again."""
    before = _is_in_torch.set(True)
    try:
        yield
    finally:
        _is_in_torch.reset(before)


def covers(*tensors: Tensor) -> bool:
    """Return whether the compiled core can compute with these: plain ones, in the CPU's memory.

    Of torch.func's transforms it takes vmap alone.
    """
    dtype = tensors[0].dtype
    if torch.compiler.is_compiling() or torch._C._is_tracing() or _is_in_torch.get():
        return False
    if torch.is_autocast_enabled('cpu') or forward_ad._current_level >= 0 or 0 in tensors[0].shape:
        return False
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return False
        if tensor.dtype != dtype or tensor.device.type != 'cpu':
            return False
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    if any(t.key() != torch._C._functorch.TransformType.Vmap for t in transforms):
        return False
    return dtype in _MODULES and compiled_module(_MODULES[dtype]) is not None


def run(kernel: Kernel, steps: SubSteps, is_held: bool, driven: Tensor, h: Tensor) -> Tensor:
    """Return the states (batch * steps, units) at the ends of the intervals.

    Args:
        is_held: whether `driven` has a row for each interval, or else for each sub-step.
        driven: (rows, n), as the cell's `driven_by` gives it.
        h: (batch, units) to start from.
    """
    plan = _Plan(kernel.form, steps, is_held)
    given = (driven, steps.width, h, *kernel.parameters)
    ends: Tensor = _Scan.apply(plan, *kernel.wiring, *given)[0]
    return ends


def driven_by(cell: Cell, u: Tensor) -> Tensor:
    """Return `cell.driven_by(u)` for u (rows, inputs), the sensory synapses in the core."""
    if not isinstance(cell, SynapticLTC):
        return cell.driven_by(u)
    gl = positive(cell.raw_gl)
    base, x = torch.cat((gl, gl * cell.vl)), cell.input_w * u + cell.input_b
    driven: Tensor = _Open.apply(*_wiring(cell.sensory), x, base, *_numbers(cell.sensory))
    return driven


def _numbers(synapses: Synapses) -> tuple[Tensor, ...]:
    return softplus(synapses.raw_w), synapses.sigma, synapses.mu, synapses.erev


def _wiring(synapses: Synapses) -> tuple[Tensor, Tensor]:
    return synapses.source, synapses.target


def _arrays(tensors: Any) -> tuple[NDArray[Any], ...]:
    return tuple(t.detach().contiguous().numpy() for t in tensors)


def _like(tensors: Any) -> tuple[Tensor, ...]:
    """Return memory for gradients, in which nothing stands yet."""
    return tuple(torch.empty(t.shape, dtype=t.dtype) for t in tensors)


# The functions take the wiring before all that has a gradient: torch.vmap hands it out by seed too.


def _refuse_another_derivative() -> None:
    """Raise where the gradient is to be differentiated: torch would take it for a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            'the gradients of the compiled core cannot be differentiated again (create_graph): '
            'compute the states under `with lnn_ros.liquid.scan.in_torch():`'
        )


@dataclass(frozen=True)
class _Plan:
    form: int
    steps: SubSteps
    is_held: bool

    @property
    def wires(self) -> int:
        return 2 if self.form >= SYNAPTIC else 0

    def scan(self, given: Any, states: Tensor, *gradients: Any) -> None:
        """Call the core, forward or, with gradients, back."""
        steps, arrays = self.steps, _arrays(given)
        wiring, (driven, width, start, *numbers) = arrays[: self.wires], arrays[self.wires :]
        interval = None if steps.interval is None else steps.interval.numpy()
        compiled_module(_MODULES[states.dtype]).scan(
            _FASTEST, self.form, steps.offset.numpy(), interval, self.is_held, width, driven,
            start, states.numpy(), wiring, tuple(numbers), *gradients,
        )  # fmt: skip


class _Scan(torch.autograd.Function):
    """(plan, wiring..., driven, width, start, parameters...) -> states at the ends of intervals.

    And the states at the ends of the sub-steps, which only the way back needs.
    """

    @staticmethod
    def forward(plan: _Plan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        driven, width, start = tensors[plan.wires : plan.wires + 3]
        states = driven.new_empty(len(width), start.shape[1])
        plan.scan(tensors, states)
        if plan.steps.interval is None:
            return states, states.new_empty(0)
        return states.index_select(0, plan.steps.last), states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.plan = inputs[0]
        ctx.set_materialize_grads(False)  # zeros as large as all states, for nothing
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[1:], output[inputs[0].steps.interval is not None])

    @staticmethod
    def backward(ctx: Any, of_ends: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        _refuse_another_derivative()
        if of_ends is None:
            return (None,) * len(ctx.saved_tensors)
        *given, states = ctx.saved_tensors
        of = _like(given[ctx.plan.wires :])
        of_driven, of_width, *rest = (t.numpy() for t in of)
        ctx.plan.scan(given, states, (*_arrays((of_ends,)), of_width, of_driven, *rest))
        return None, *(None for _ in range(ctx.plan.wires)), *of

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], plan: _Plan, *tensors: Tensor) -> Any:
        each = (_Scan.apply(plan, *own)[0] for own in _each(info, dims[1:], tensors))
        return (torch.stack(list(each)), tensors[0].new_empty(0)), (0, None)


class _Open(torch.autograd.Function):
    """(wiring..., x, base, parameters...) -> conductances, currents; see `lnn_open` in core.h."""

    @staticmethod
    def forward(*tensors: Tensor) -> Tensor:
        source, target, x, base, *numbers = _arrays(tensors)
        out = tensors[2].new_empty(len(x), len(base))
        compiled_module(_MODULES[out.dtype]).open_synapses(
            _FASTEST, x, base, out.numpy(), (source, target), tuple(numbers)
        )
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_another_derivative()
        saved = ctx.saved_tensors  # once: a checkpoint gives them out one time only
        source, target, x, base, *numbers = _arrays(saved)
        of = _like(saved[2:])
        (out,) = _arrays((of_out,))
        compiled_module(_MODULES[of_out.dtype]).open_synapses(
            _FASTEST, x, base, out, (source, target), tuple(numbers),
            (out, *(t.numpy() for t in of)),
        )  # fmt: skip
        return None, None, *of

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *tensors: Tensor) -> Any:
        return torch.stack([_Open.apply(*own) for own in _each(info, dims, tensors)]), 0


def _each(info: Any, dims: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> Any:
    """Yield one after the other what torch.vmap asks for at once."""
    own = [
        (tensor,) * info.batch_size if dim is None else tensor.unbind(dim)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
    return zip(*own, strict=True)
