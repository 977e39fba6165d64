"""A stack of liquid layers with the builder interface of Edifice.Liquid, for torch.

    u -> Linear (if embed_dim != hidden_size) -> num_layers x LiquidLayer -> LayerNorm -> last step

Added to what Edifice documents: intervals are measured, never 1; the cache is consumed, so that a
step costs the same however long the history; any cell and any hold can be used.

Edifice 0.2, https://hexdocs.pm/edifice/Edifice.Liquid.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lnn_ros.liquid.cells import Cell, LiquidCell, require_shape
from lnn_ros.liquid.sequence import fill, intervals, unroll
from lnn_ros.liquid.solvers import Solver
from lnn_ros.policy import HOLDS

Cache = dict[str, Any]
"""{'layers': {'layer_1': {'h': (batch, units), 'u': ...}, ...}, 'held': (batch, embed_dim),
'step': int64, 'config': {...}}: all that a step needs of the past. `held` is the last input, `u` a
layer's last one (where the hold asks for it); NaN in them stands for what was not seen yet."""

MakeCell = Callable[[int, int, Solver], Cell]
"""Makes a layer's cell from (inputs, outputs, solver), both sizes being `hidden_size`."""


def liquid_cell(inputs: int, outputs: int, solver: Solver) -> Cell:
    """Make the cell that Edifice has."""
    return LiquidCell(inputs, outputs, solver)


class LiquidLayer(nn.Module):
    """u + Dropout(cell(LayerNorm(u))), over a sequence.

    Args:
        cell: `inputs` and `outputs` must be equal, for the sum.
        dropout: probability, while training.
        hold: see `lnn_ros.policy.HOLDS`; what is held is the normalised input.
    """

    def __init__(self, cell: Cell, dropout: float, hold: str) -> None:
        super().__init__()
        if cell.inputs != cell.outputs:
            raise ValueError(
                f'a layer adds what the cell reads to its input, but the cell has {cell.inputs} '
                f'inputs and {cell.outputs} outputs'
            )
        if hold not in HOLDS:
            raise ValueError(f"hold is '{hold}', must be one of {', '.join(HOLDS)}")
        self.norm = nn.LayerNorm(cell.inputs)
        self.cell = cell
        self.dropout = nn.Dropout(dropout)
        self.hold = hold

    def init_cache(self, batch_size: int) -> dict[str, Tensor]:
        """Return zeros for the state, and NaN for the input that no one has seen yet."""
        like = self.norm.weight
        cache = {'h': like.new_zeros(batch_size, self.cell.units)}
        if self.hold != 'current':
            cache['u'] = like.new_full((batch_size, self.cell.inputs), torch.nan)
        return cache

    def forward(
        self, u: Tensor, dt: float | Tensor, cache: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outputs (batch, steps, hidden) and the cache after the last step.

        Args:
            u: (batch, steps, hidden).
            dt: seconds, one number or (batch, steps).
            cache: to go on from; a new one if not given.
        """
        cache = cache or self.init_cache(u.shape[0])
        x = self.norm(u)
        states = unroll(self.cell, x, dt, cache['h'], hold=self.hold, before=cache.get('u'))
        after = {'h': states[:, -1]}
        if 'u' in cache:
            after['u'] = x[:, -1]
        return u + self.dropout(self.cell.read(states)), after


class SwiGLU(nn.Module):
    """y + Dropout(W_down (silu(W_gate x) * W_up x)) with x = LayerNorm(y), 4 times as wide inside.

    Shazeer, "GLU variants improve transformer", 2020.
    """

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.gate = nn.Linear(size, 4 * size)
        self.up = nn.Linear(size, 4 * size)
        self.down = nn.Linear(4 * size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor) -> Tensor:
        """Return (..., size) of (..., size)."""
        x = self.norm(y)
        return y + self.dropout(self.down(silu(self.gate(x)) * self.up(x)))


class LiquidNetwork(nn.Module):
    """The stack that `build` and `build_with_ffn` make.

    Args:
        embed_dim: size of an input.
        layers: each of the same size.
        ffn: what follows each layer, or nothing.
        window_size: steps of the windows it is meant for, kept in `config`; any length runs.
    """

    def __init__(
        self,
        embed_dim: int,
        layers: list[LiquidLayer],
        ffn: list[SwiGLU] | None = None,
        window_size: int = 60,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError('num_layers is 0, must be at least 1')
        if embed_dim < 1:
            raise ValueError(f'embed_dim is {embed_dim}, must be at least 1')
        hidden_size = layers[0].cell.inputs
        self.embed_dim, self.hidden_size = embed_dim, hidden_size
        self.project = nn.Linear(embed_dim, hidden_size) if embed_dim != hidden_size else None
        self.layers: Any = nn.ModuleList(layers)  # of LiquidLayer, which its type cannot say
        self.ffn = nn.ModuleList(ffn or [nn.Identity() for _ in layers])
        self.norm = nn.LayerNorm(hidden_size)
        self.config = {
            'embed_dim': embed_dim,
            'hidden_size': hidden_size,
            'num_layers': len(layers),
            'window_size': window_size,
        }

    def init_cache(self, batch_size: int = 1) -> Cache:
        """Return the cache before the first step."""
        held = self.norm.weight.new_full((batch_size, self.embed_dim), torch.nan)
        return {
            'layers': {
                f'layer_{i}': layer.init_cache(batch_size)
                for i, layer in enumerate(self.layers, start=1)
            },
            'held': held,
            'step': torch.zeros((), dtype=torch.int64, device=held.device),
            'config': dict(self.config),
        }

    def sequence(
        self,
        u: Tensor,
        dt: float | Tensor | None = None,
        *,
        stamps_ns: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache]:
        """Run a sequence and return the outputs of all its steps.

        Args:
            u: (batch, steps, embed_dim).
            dt: seconds since the sample before, one number or (batch, steps).
            stamps_ns: (batch, steps + 1) instead of dt, see `lnn_ros.liquid.sequence.intervals`.
            mask: True where an input is there, see `lnn_ros.liquid.sequence.fill`.
            cache: to go on from; a new one if not given. It is not changed.

        Returns:
            outputs (batch, steps, hidden_size) and the cache after the last step.

        Raises:
            ValueError: when there is no interval, one is not finite or not greater than 0, or an
                input is not finite.
            IntegrationError: when the solver cannot keep its promise.
        """
        require_shape('u', u, (*u.shape[:2], self.embed_dim))
        cache = cache or self.init_cache(u.shape[0])
        seconds = intervals(u, dt, stamps_ns)
        u = fill(u, mask, cache['held'])
        y = u if self.project is None else self.project(u)
        layers = {}
        for (name, before), layer, ffn in zip(
            cache['layers'].items(), self.layers, self.ffn, strict=True
        ):
            y, layers[name] = layer(y, seconds, before)
            y = ffn(y)
        after = {
            'layers': layers,
            'held': u[:, -1],
            'step': cache['step'] + u.shape[1],
            'config': cache['config'],
        }
        return self.norm(y), after

    def forward(
        self,
        u: Tensor,
        dt: float | Tensor | None = None,
        *,
        stamps_ns: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the output (batch, hidden_size) at the last step; see `sequence`."""
        return self.sequence(u, dt, stamps_ns=stamps_ns, mask=mask)[0][:, -1]

    def step(
        self, cache: Cache, u: Tensor, dt: float | Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Take one more sample, at a cost that does not depend on how many came before.

        Args:
            cache: from `init_cache`, `sequence` or the step before. It is not changed.
            u: (batch, embed_dim).
            dt: seconds since the sample before, one number or (batch,).
            mask: bool (batch, embed_dim), True where an input is there.

        Returns:
            the output (batch, hidden_size), equal to `sequence` over the whole history, and the
            next cache.

        Raises:
            ValueError, IntegrationError: as `sequence`.
        """
        seconds = torch.as_tensor(dt, dtype=u.dtype, device=u.device)
        y, cache = self.sequence(
            u.unsqueeze(1),
            seconds if seconds.dim() == 0 else seconds.unsqueeze(1),
            mask=None if mask is None else mask.unsqueeze(1),
            cache=cache,
        )
        return y[:, 0], cache


class Step(nn.Module):
    """`LiquidNetwork.step` as a module, which is what torch.export takes."""

    def __init__(self, network: LiquidNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, cache: Cache, u: Tensor, dt: Tensor) -> tuple[Tensor, Cache]:
        return self.network.step(cache, u, dt)


def build_ltc_layer(
    hidden_size: int = 256,
    dropout: float = 0.1,
    integration_steps: int = 1,
    solver: str | Solver = 'exact',
    *,
    cell: MakeCell = liquid_cell,
    hold: str = 'linear',
) -> LiquidLayer:
    """Build one layer; for the arguments see `build`."""
    if isinstance(solver, str):
        solver = Solver(solver, unfolds=integration_steps)
    elif integration_steps != 1:
        raise ValueError('give integration_steps as unfolds of the solver')
    return LiquidLayer(cell(hidden_size, hidden_size, solver), dropout, hold)


def build(
    embed_dim: int,
    hidden_size: int = 256,
    num_layers: int = 4,
    dropout: float = 0.1,
    window_size: int = 60,
    integration_steps: int = 1,
    solver: str | Solver = 'exact',
    *,
    cell: MakeCell = liquid_cell,
    hold: str = 'linear',
) -> LiquidNetwork:
    """Build the network (batch, steps, embed_dim) -> (batch, hidden_size), from the last step.

    Args:
        embed_dim: size of an input.
        hidden_size: size of all layers and of the output.
        num_layers: how many layers.
        dropout: probability, while training.
        window_size: steps of the windows it is meant for; any length runs.
        integration_steps: fewest sub-steps of an interval.
        solver: a name, or a Solver with its own limits and tolerances.
        cell: makes each layer's cell, as `cell(hidden_size, hidden_size, solver)`.
        hold: `current` (which is Edifice's), `previous` or `linear`.
    """
    layers = [
        build_ltc_layer(hidden_size, dropout, integration_steps, solver, cell=cell, hold=hold)
        for _ in range(num_layers)
    ]
    return LiquidNetwork(embed_dim, layers, window_size=window_size)


def build_with_ffn(
    embed_dim: int,
    hidden_size: int = 256,
    num_layers: int = 4,
    dropout: float = 0.1,
    window_size: int = 60,
    integration_steps: int = 1,
    solver: str | Solver = 'exact',
    *,
    cell: MakeCell = liquid_cell,
    hold: str = 'linear',
) -> LiquidNetwork:
    """Build the network of `build` with a SwiGLU block after each layer."""
    layers = [
        build_ltc_layer(hidden_size, dropout, integration_steps, solver, cell=cell, hold=hold)
        for _ in range(num_layers)
    ]
    ffn = [SwiGLU(hidden_size, dropout) for _ in layers]
    return LiquidNetwork(embed_dim, layers, ffn, window_size)


def output_size(hidden_size: int = 256) -> int:
    """Return the size of the output."""
    return hidden_size


def param_count(embed_dim: int, hidden_size: int = 256, num_layers: int = 4) -> int:
    """Return the count that Edifice documents: the matrices of `build`, no biases and no norms."""
    projection = embed_dim * hidden_size if embed_dim != hidden_size else 0
    return projection + 5 * num_layers * hidden_size**2


def exact_param_count(network: nn.Module) -> int:
    """Return the count of all trained numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def recommended_defaults() -> dict[str, Any]:
    """Return the arguments that Edifice recommends: `build(embed_dim, **recommended_defaults())`.

    `exact` is cheaper and, for the cell that these build, exact; see docs/network.md.
    """
    return {
        'hidden_size': 256,
        'num_layers': 4,
        'dropout': 0.1,
        'window_size': 60,
        'integration_steps': 1,
        'solver': 'rk4',
    }


def high_accuracy_defaults() -> dict[str, Any]:
    """Return `recommended_defaults` with the adaptive solver."""
    return {**recommended_defaults(), 'solver': 'dopri5'}
