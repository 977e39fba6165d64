"""What the compiled core's training functions refuse: everything that they could not address."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

FASTEST = -1
LIQUID, NEURAL, SYNAPTIC, FUSED = range(4)
BATCH, UNITS, STEPS, SYNAPSES = 2, 3, 5, 4


@pytest.fixture(scope='module', params=['_core', '_core_double'])
def module(request) -> ModuleType:
    name = f'lnn_ros.core.{request.param}'
    return pytest.importorskip(name, reason='the compiled core is not installed')


@pytest.fixture
def real(module) -> np.dtype:
    return np.dtype(f'f{module.real_bits // 8}')


def arguments(form: int, real: np.dtype) -> dict:
    """Return what a backward pass takes, by name, in order."""

    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, real)

    rate = ones(UNITS)
    synapses = tuple(ones(SYNAPSES) for _ in range(4))
    parameters = {
        LIQUID: (),
        NEURAL: (rate, ones(UNITS, UNITS), ones(UNITS), ones(UNITS)),
    }.get(form, (rate, *synapses))
    return {
        'variant': FASTEST,
        'form': form,
        'offset': np.array([0, 3, STEPS]),
        'interval': np.array([0, 0, 1, 2, 2]),
        'is_held': True,
        'width': ones(STEPS),
        'driven': ones(3, 2 * UNITS),
        'start': ones(BATCH, UNITS),
        'states': ones(STEPS, UNITS),
        'wiring': () if form < SYNAPTIC else (np.array([0, 1, 2, 2]), np.array([2, 1, 0, 0])),
        'parameters': parameters,
        'gradients': (
            ones(3, UNITS), ones(STEPS), ones(3, 2 * UNITS), ones(BATCH, UNITS),
            *(np.zeros_like(p) for p in parameters),
        ),
    }  # fmt: skip


def replaced(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


@pytest.mark.parametrize('form', [LIQUID, NEURAL, SYNAPTIC, FUSED])
def test_pass_back_fills_every_gradient(form, module, real) -> None:
    given = arguments(form, real)
    for gradient in given['gradients'][1:]:
        gradient[...] = np.nan
    module.scan(*given.values())
    assert all(np.isfinite(gradient).all() for gradient in given['gradients'])


@pytest.mark.parametrize('form', [LIQUID, NEURAL, SYNAPTIC, FUSED])
def test_scan_refuses_what_does_not_fit(form, module, real) -> None:
    good = arguments(form, real)
    other = np.dtype('f4') if real == 'f8' else np.dtype('f8')
    wrong: list[tuple[str, object]] = [
        ('variant', 99),
        ('form', -1),
        ('form', 4),
        ('offset', np.array([0, STEPS])),
        ('offset', np.array([0, 3, STEPS + 1])),
        ('offset', np.array([0, 6, STEPS])),
        ('offset', np.array([-1, 3, STEPS])),
        ('offset', np.array([1, 3, STEPS])),
        ('offset', np.array([0, 3, STEPS], np.int32)),
        ('interval', np.array([0, 0, 1, 2, 3])),
        ('interval', np.array([0, 0, -1, 2, 2])),
        ('interval', np.array([0, 0, 2**62, 2, 2])),
        ('interval', np.zeros(STEPS - 1, np.int64)),
        ('interval', None),  # then there must be a row of driven for each sub-step
        ('is_held', False),
        ('driven', np.ones((3, 2 * UNITS + 1), real)),
        ('driven', np.ones((2, 2 * UNITS), real)),
        ('driven', np.ones((3, 4 * UNITS), real)[:, ::2]),
        ('width', np.array([1, 1, 1, 1, -1], real)),
        ('width', np.array([1, np.nan, 1, 1, 1], real)),
        ('width', np.array([1, np.inf, 1, 1, 1], real)),
        ('start', np.ones((0, 2**40), real)),
        ('start', np.ones((BATCH, 0), real)),
        ('start', np.ones(BATCH * UNITS, real)),
        ('start', np.ones((1, UNITS), real)),
        ('states', np.ones((STEPS, UNITS - 1), real)),
        *((name, good[name].astype(other)) for name in ('width', 'driven', 'start', 'states')),
        *((name, None) for name in ('offset', 'width', 'driven', 'start', 'states')),
    ]
    for tuples in ('parameters', 'gradients'):
        wrong.append((tuples, good[tuples] + (np.ones(1, real),)))
        for i, array in enumerate(good[tuples]):
            wrong.append((tuples, replaced(good[tuples], i, array.ravel()[:-1])))
            wrong.append((tuples, replaced(good[tuples], i, array.astype(other))))
            wrong.append((tuples, replaced(good[tuples], i, None)))
    for i in range(1, len(good['gradients'])):
        constant = good['gradients'][i].copy()
        constant.setflags(write=False)
        wrong.append(('gradients', replaced(good['gradients'], i, constant)))
    for i, indices in enumerate(good['wiring']):
        for index in (-1, UNITS, 2**62):
            out = indices.copy()
            out[1] = index
            wrong.append(('wiring', replaced(good['wiring'], i, out)))
        wrong.append(('wiring', replaced(good['wiring'], i, indices[:-1])))
    for name, value in wrong:
        with pytest.raises((ValueError, TypeError)):
            module.scan(*(good | {name: value}).values())
        if name != 'gradients' and name != 'interval':
            forward = good | {name: value}
            del forward['gradients']
            with pytest.raises((ValueError, TypeError)):
                module.scan(*forward.values())
    module.scan(*good.values())


def test_opening_refuses_what_does_not_fit(module, real) -> None:
    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, real)

    numbers = tuple(ones(SYNAPSES) for _ in range(4))
    good = {
        'variant': FASTEST,
        'x': ones(7, 2),
        'base': ones(2 * UNITS),
        'out': ones(7, 2 * UNITS),
        'wiring': (np.array([0, 1, 1, 0]), np.array([2, 1, 0, 0])),
        'numbers': numbers,
        'gradients': (ones(7, 2 * UNITS), ones(7, 2), ones(2 * UNITS), *numbers),
    }
    module.open_synapses(*good.values())
    wrong = [
        ('x', ones(7, 1)),
        ('x', ones(6, 2)),
        ('x', ones(14)),
        ('x', ones(0, 2)),
        ('base', ones(2 * UNITS - 1)),
        ('base', ones(2)),
        ('base', ones(0)),
        ('out', ones(7, UNITS)),
        ('wiring', (np.array([0, 1, 1, 2]), good['wiring'][1])),
        ('wiring', (good['wiring'][0], np.array([2, 1, 0, UNITS]))),
        ('wiring', (good['wiring'][0], np.array([2, 1, 0, -1]))),
        ('wiring', (good['wiring'][0][:3], good['wiring'][1])),
        ('wiring', ()),
        ('numbers', numbers[:3]),
        ('numbers', (*numbers[:3], ones(SYNAPSES + 1))),
        *(
            ('gradients', replaced(good['gradients'], i, ones(1)))
            for i in range(len(good['gradients']))
        ),
        ('gradients', good['gradients'][:-1]),
        ('gradients', ()),
    ]
    for name, value in wrong:
        with pytest.raises((ValueError, TypeError, IndexError)):
            module.open_synapses(*(good | {name: value}).values())
