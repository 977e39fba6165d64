import math

import pytest
import torch

from lnn_ros.liquid.sequence import HOLDS, fill, intervals, unroll
from lnn_ros.liquid.solvers import Solver


def example(batch=4, steps=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(batch, steps, 3, generator=generator, dtype=torch.float64)
    return u, 0.01 + 0.3 * torch.rand(batch, steps, generator=generator, dtype=torch.float64)


def test_holds_are_the_step_of_the_cell_with_what_acts_in_between(kind, make_cell):
    cell = make_cell(kind)
    u, dt = example()
    for hold in HOLDS:
        h, before, expected = torch.zeros(4, 7).double(), u[:, 0], []
        for k in range(u.shape[1]):
            h = {
                'current': lambda h=h, k=k: cell(u[:, k], h, dt[:, k]),
                'previous': lambda h=h, k=k, b=before: cell(b, h, dt[:, k]),
                'linear': lambda h=h, k=k, b=before: cell(u[:, k], h, dt[:, k], start=b),
            }[hold]()
            expected.append(h)
            before = u[:, k]
        ours = unroll(cell, u, dt, hold=hold)
        torch.testing.assert_close(ours, torch.stack(expected, 1), rtol=1e-12, atol=1e-12)


def test_holds_approach_the_continuous_input_in_their_order(kind, make_cell):
    """Sample sin(2 t): a constant hold errs by the interval, the linear one by its square."""
    cell = make_cell(kind, inputs=3, solver=Solver('rk4', max_step=0.01))

    def final(rate, hold):
        t = torch.arange(rate + 1).double() / rate
        u = torch.sin(2.0 * t).reshape(1, -1, 1).expand(1, -1, 3)
        with torch.no_grad():
            return unroll(cell, u[:, 1:], 1.0 / rate, hold=hold, before=u[:, 0])[0, -1]

    truth = final(400, 'linear')
    for hold, order in (('current', 1), ('previous', 1), ('linear', 2)):
        errors = [float((final(rate, hold) - truth).abs().max()) for rate in (10, 20)]
        assert errors[0] / errors[1] == pytest.approx(2.0**order, rel=0.3)


def test_previous_is_causal_and_current_is_not(make_cell):
    cell = make_cell('neural')
    u, dt = example()
    changed = u.clone()
    changed[:, -1] += 1.0
    for hold, differs in (('previous', False), ('current', True), ('linear', True)):
        one, other = unroll(cell, u, dt, hold=hold), unroll(cell, changed, dt, hold=hold)
        assert torch.equal(one[:, :-1], other[:, :-1])
        assert torch.equal(one[:, -1], other[:, -1]) != differs


def test_stamps_are_subtracted_as_integers(make_cell):
    cell = make_cell('neural')
    u, dt = example()
    nanoseconds = (dt * 1e9).round().long()
    today = 1_790_000_000 * 10**9  # where a float64 is good to 256 ns and a float32 to 128 s
    stamps = today + torch.cat((torch.zeros(4, 1).long(), nanoseconds.cumsum(1)), dim=1)
    got = intervals(u, None, stamps)
    torch.testing.assert_close(got, nanoseconds.double() * 1e-9, rtol=1e-15, atol=0.0)
    assert torch.equal(unroll(cell, u, stamps_ns=stamps), unroll(cell, u, got))
    # an interval of 1 ns survives
    ones = today + torch.arange(10).expand(4, 10)
    assert torch.equal(intervals(u, None, ones), torch.full((4, 9), 1e-9, dtype=torch.float64))
    float32 = intervals(u.float(), None, stamps)
    assert float32.dtype == torch.float32
    torch.testing.assert_close(float32, got.float(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ('dt', 'stamps', 'text'),
    [
        (None, None, 'give dt in seconds or stamps_ns'),
        (0.1, torch.arange(10).expand(4, 10), 'and not both'),
        (None, torch.arange(10.0).expand(4, 10), 'must be int64'),
        (None, torch.arange(9).expand(4, 9), r'stamps_ns has shape \(4, 9\), must be \(4, 10\)'),
        (None, torch.arange(10).flip(0).expand(4, 10), 'every interval must be finite and'),
        (None, torch.zeros(4, 10).long(), 'dt is 0 s'),
        (torch.ones(4), None, r'dt has shape \(4,\), must be \(4, 9\)'),
        (torch.ones(9), None, r'dt has shape \(9,\), must be \(4, 9\)'),
        (torch.ones(4, 9, 1), None, 'dt has shape'),
        (-0.1, None, 'dt is -0.1 s'),
    ],
)
def test_intervals_that_are_not_given_once_and_rightly_are_refused(dt, stamps, text):
    u, _ = example()
    with pytest.raises(ValueError, match=text):
        intervals(u, dt, stamps)


def test_missing_value_holds_the_last_one_of_its_own_input():
    u = torch.arange(1.0, 9.0).reshape(1, 4, 2)  # 1 2, 3 4, 5 6, 7 8
    mask = torch.tensor([[[1, 1], [0, 1], [0, 0], [1, 0]]]).bool()
    u[~mask] = torch.nan
    expected = torch.tensor([[[1.0, 2.0], [1.0, 4.0], [1.0, 4.0], [7.0, 4.0]]])
    assert torch.equal(fill(u, mask, None), expected)
    rows = torch.tensor([[True, False, False, True]])
    assert fill(expected, rows, None)[0, :, 1].tolist() == [2.0, 2.0, 2.0, 4.0]


def test_missing_value_at_the_start_holds_what_came_before_or_is_refused():
    u, mask = torch.ones(1, 2, 2), torch.tensor([[[0, 1], [0, 1]]]).bool()
    held = torch.tensor([[5.0, torch.nan]])
    assert fill(u, mask, held)[0].tolist() == [[5.0, 1.0], [5.0, 1.0]]
    with pytest.raises(ValueError, match='there is nothing to hold'):
        fill(u, mask, None)
    with pytest.raises(ValueError, match='must be bool'):
        fill(u, mask.float(), held)
    with pytest.raises(ValueError, match='mask has shape'):
        fill(u, mask[..., :1], held)


def test_time_goes_on_while_inputs_are_missing(kind, make_cell):
    """With hold `previous`, dropped samples are one longer interval, as on a robot."""
    cell = make_cell(kind, solver=Solver('dopri5', rtol=1e-9, atol=1e-9))
    u, dt = example()
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[:, [3, 4, 7]] = False
    filled = fill(torch.where(mask[..., None], u, torch.nan), mask, None)
    with torch.no_grad():
        ours = unroll(cell, filled, dt, hold='previous')
        kept = dt[:, [0, 1, 2, 5, 6, 8]].clone()
        kept[:, 3] += dt[:, 3] + dt[:, 4]
        kept[:, 5] += dt[:, 7]
        dropped = unroll(cell, u[:, [0, 1, 2, 5, 6, 8]], kept, hold='previous')
    torch.testing.assert_close(ours[:, [5, 8]], dropped[:, [3, 5]], rtol=0.0, atol=1e-6)
    assert not torch.equal(ours[:, 3], ours[:, 2])  # the state moves meanwhile


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'hold': 'spline'}, "hold is 'spline', must be one of current, previous, linear"),
        ({'h': torch.zeros(4, 6).double()}, r'h has shape \(4, 6\), must be \(4, 7\)'),
        ({'u': torch.zeros(4, 9, 2).double()}, r'u has shape \(4, 9, 2\), must be \(4, 9, 3\)'),
        ({'u': torch.zeros(4, 0, 3).double()}, 'the sequence is empty'),
        ({'h': torch.full((4, 7), torch.nan).double()}, 'the state has values that are not finite'),
    ],
)
def test_sequence_that_does_not_fit_is_refused_by_name(options, text, make_cell):
    arguments = {'u': example()[0], 'dt': 0.1, **options}
    with pytest.raises(ValueError, match=text):
        unroll(make_cell('neural'), **arguments)


@pytest.mark.parametrize(
    'options, text',
    [
        ({'u': torch.ones(2, 4, 3, dtype=torch.int64)}, 'u is torch.int64'),
        ({'h': torch.zeros(2, 7, dtype=torch.int64)}, 'h is torch.int64'),
        ({'u': torch.ones(4, 3, dtype=torch.float64)}, r'must be \(batch, steps, 3\)'),
        ({'before': torch.full((2, 3), math.inf, dtype=torch.float64)}, 'before has values'),
        ({'before': torch.zeros(3, dtype=torch.float64)}, r'before has shape \(3,\)'),
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(options, text, make_cell):
    given = {'u': torch.ones(2, 4, 3, dtype=torch.float64), **options}
    with pytest.raises(ValueError, match=text):
        unroll(make_cell('neural'), given.pop('u'), 0.1, **given)


def test_batch_of_none_gives_none(kind, make_cell):
    states = unroll(make_cell(kind), torch.zeros(0, 4, 3, dtype=torch.float64), 0.1)
    assert states.shape == (0, 4, 7)
