"""The rows of `lnn_ros bench rates` as Markdown tables and as a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

TITLES = {
    'system': 'the system itself, given its samples',
    '10Hz': 'trained at 10 Hz',
    'jittered': 'trained at 10 ms ... 1 s',
}


def table(rows: Rows) -> str:
    """Return the tables: random weights and split steps, then each regime, mean and range."""
    untrained = [r for r in rows if '/' not in r['name']]
    parts = [_markdown('random weights', untrained, lambda r: f'{r["value"]:.1e}')]
    for regime in TITLES:
        own = [r for r in rows if regime in r['name'].split('/')]
        parts.append(_markdown(TITLES[regime], own, _figure))
    return '\n\n'.join(parts)


def _markdown(title: str, rows: Rows, figure: Callable[[dict[str, Any]], str]) -> str:
    metrics = list(dict.fromkeys(r['metric'] for r in rows))
    cells = {(r['name'], r['metric']): figure(r) for r in rows}
    lines = [
        f'| {title} | {" | ".join(metrics)} |',
        '|---' * (len(metrics) + 1) + '|',
    ]
    for name in dict.fromkeys(r['name'] for r in rows):
        own = (cells.get((name, metric), '-') for metric in metrics)
        lines.append(f'| {name} | {" | ".join(own)} |')
    return '\n'.join(lines)


def _figure(row: dict[str, Any]) -> str:
    if not row['metric'].startswith('nmse'):
        return f'{row["value"]:.0f}'
    value, low, high = (_short(row[key]) for key in ('value', 'low', 'high'))
    return value if row['n'] == 1 else f'{value} ({low}-{high})'


def _short(value: float) -> str:
    """Return two significant digits without an exponent and without a leading zero."""
    digits = 2 if value >= 0.1 else 3 if value >= 0.01 else 4 if value >= 0.001 else 5
    return f'{value:.{digits}f}'.removeprefix('0')


def plot(rows: Rows, file: Path) -> None:
    """Draw the error over the sampling rate, a panel for each training regime."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout='constrained')
    for axis, regime in zip(axes, ('10Hz', 'jittered'), strict=True):
        shown = [r for r in rows if r['name'].endswith(f'/{regime}') and r['metric'][-2:] == 'Hz']
        for name in dict.fromkeys(r['name'] for r in shown):
            own = [r for r in shown if r['name'] == name]
            rates = [float(r['metric'].removeprefix('nmse@').removesuffix('Hz')) for r in own]
            (line,) = axis.plot(
                rates, [r['value'] for r in own], marker='o', label=name.split('/')[0]
            )
            axis.fill_between(
                rates,
                [r['low'] for r in own],
                [r['high'] for r in own],
                alpha=0.2,
                color=line.get_color(),
            )
        axis.set(xscale='log', yscale='log', xlabel='sampled at (Hz)')
        axis.set_title(TITLES[regime])
        axis.grid(True, which='major', alpha=0.3)
    axes[0].set_ylabel('NMSE on unseen signals')
    figure.legend(*axes[1].get_legend_handles_labels(), loc='outside right center')
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
