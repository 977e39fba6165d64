"""A sequence of exact sub-steps of the neural form, with its gradient written out.

Autograd records some fifteen small operations per sub-step and runs back through as many. Here the
loop forward has nine, unrecorded, and the loop back four: all that does not depend on the adjoint
is computed for the whole sequence at once. With k = exp(d o), o = 1 + g s, e = (c + g r s) / o,

    h' = e + (h - e) k,   s = sigmoid(a + W h),   d = -step / tau,   g = gain,   r = reversal

the adjoint p of h' gives that of a as p P and that of h as p k + W^T (p P), where

    P = s (1 - s) [(h - e) k d g + (1 - k) (g r - e g) / o]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lnn_ros.liquid.cells import NeuralLTC


def run(cell: NeuralLTC, driven: Tensor, width: Tensor) -> Tensor:
    """Return the states (sub-steps, batch, units) from a state of 0 on.

    Args:
        cell: its solver is taken to be `exact`.
        driven: (sub-steps, batch, 2 units), what the input drives in each sub-step.
        width: (sub-steps, batch, 1) seconds.
    """
    into_gate, current = driven.chunk(2, dim=-1)
    decay = -width * torch.exp(-cell.log_tau)
    states, _ = _Scan.apply(
        into_gate, current, decay, cell.gate_recurrent, cell.log_gain.exp(), cell.reversal
    )
    return states


class _Scan(torch.autograd.Function):
    """Any dimensions may stand between the sub-steps and the batch, the same before the weights."""

    @staticmethod
    def forward(
        into_gate: Tensor, current: Tensor, decay: Tensor, weight: Tensor, gain: Tensor, to: Tensor
    ) -> tuple[Tensor, Tensor]:
        across = weight.mT.contiguous()
        gain = gain.unsqueeze(-2)
        pull = gain * to.unsqueeze(-2)
        h = torch.zeros_like(into_gate[0])
        states, gates = torch.empty_like(into_gate), torch.empty_like(into_gate)
        for k in range(len(into_gate)):
            gate = torch.sigmoid_(torch.matmul(h, across).add_(into_gate[k]))
            opening = (gain * gate).add_(1.0)
            equilibrium = torch.addcmul(current[k], pull, gate).div_(opening)
            kept = opening.mul_(decay[k]).exp_()
            h = torch.lerp(equilibrium, h, kept)
            states[k], gates[k] = h, gate
        return states, gates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[1:], *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        current, decay, weight, gain, to, states, gate = ctx.saved_tensors
        gain, to = gain.unsqueeze(-2), to.unsqueeze(-2)
        before = torch.cat((torch.zeros_like(states[:1]), states[:-1]))
        opening = 1.0 + gain * gate
        equilibrium = (current + gain * to * gate) / opening
        kept = torch.exp(decay * opening)
        by_opening = (before - equilibrium) * kept
        released = (1.0 - kept) / opening
        slope = gate * (1.0 - gate) * gain
        to_gate = slope * (by_opening * decay + released * (to - equilibrium))
        adjoint, adjoint_of_gate = torch.empty_like(states), torch.empty_like(states)
        after = torch.zeros_like(states[0])
        for k in range(len(states) - 1, -1, -1):
            p = after + grads[0][k]
            into = p * to_gate[k]
            after = (p * kept[k]).add_(torch.matmul(into, weight))
            adjoint[k], adjoint_of_gate[k] = p, into
        by_opening *= adjoint
        of_current = adjoint * released
        of_opening = by_opening * decay - of_current * equilibrium
        of_gain = (of_opening + of_current * to) * gate
        of_weight = torch.einsum('t...bi,t...bj->...ij', adjoint_of_gate, before)
        return (
            adjoint_of_gate,
            of_current,
            by_opening * opening,
            of_weight,
            of_gain.sum(dim=(0, -2)),
            (of_current * gain * gate).sum(dim=(0, -2)),
        )

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, Any]:
        """Put the mapped dimension after the sub-steps, or before the weights."""
        placed = [
            x.unsqueeze(place).expand(*x.shape[:place], info.batch_size, *x.shape[place:])
            if dim is None
            else x.movedim(dim, place)
            for x, dim, place in zip(inputs, dims, (1, 1, 1, 0, 0, 0), strict=True)
        ]
        return _Scan.apply(*placed), (1, 1)
