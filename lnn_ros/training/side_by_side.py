"""Training of several nets of one shape at once, each with its own weights, data and gradients.

A net of some tens of units spends its time in the overhead of small operations; stacked, five of
them take about twice as long as one. Nothing is shared between them but the learning rate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lnn_ros.training.pace import paced


class SideBySide:
    """Nets under Adam, each with its gradient clipped to norm 1.

    Args:
        nets: alike in all but their numbers; what requires no gradient stays as it is.
        loss: (output of a net, its target) -> scalar.
        is_paced: whether synapses' numbers take longer steps, see `pace.paced`.
    """

    def __init__(
        self,
        nets: list[nn.Module],
        loss: Callable[[Tensor, Tensor], Tensor],
        is_paced: bool = False,
    ) -> None:
        self._base = copy.deepcopy(nets[0])
        self._count = len(nets)
        self._loss = loss
        stacked, self._fixed = stack_module_state(nets)
        trained = {name for name, p in self._base.named_parameters() if p.requires_grad}
        self._learnt = {name: p for name, p in stacked.items() if name in trained}
        self._fixed |= {name: p.detach() for name, p in stacked.items() if name not in trained}
        groups = [{'params': list(self._learnt.values()), 'pace': 1.0}]
        self._adam = torch.optim.Adam(paced(self._learnt.items()) if is_paced else groups)

    def losses(self, u: Tensor, y: Tensor, *shared: Any) -> Tensor:
        """Return the loss of each net, (nets,).

        Args:
            u, y: (nets, ...), for each its own.
            shared: more arguments of the nets, the same for all.
        """

        def one(learnt: Any, fixed: Any, u: Tensor, y: Tensor, *shared: Any) -> Tensor:
            return self._loss(functional_call(self._base, (learnt, fixed), (u, *shared)), y)

        own = (0, 0, 0, 0, *(None for _ in shared))
        return vmap(one, in_dims=own)(self._learnt, self._fixed, u, y, *shared)

    def step(self, learning_rate: float, u: Tensor, y: Tensor, *shared: Any) -> None:
        """Take one step of each net; see `losses`."""
        for group in self._adam.param_groups:
            group['lr'] = learning_rate * group['pace']
        self._adam.zero_grad()
        self.losses(u, y, *shared).sum().backward()
        gradients = [p.grad for p in self._learnt.values() if p.grad is not None]
        norms = [g.reshape(self._count, -1).norm(dim=1) for g in gradients]
        scale = torch.stack(norms).norm(dim=0).clamp(min=1.0).reciprocal()
        for g in gradients:
            g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))
        self._adam.step()

    def state(self, index: int) -> dict[str, Tensor]:
        """Return a copy of the state_dict of one net."""
        both = {**self._fixed, **self._learnt}
        return {name: value[index].detach().clone() for name, value in both.items()}
