"""Learning-rate schedules."""

import pytest

from xpnn.errors import SettingError
from xpnn.optim import SCHEDULES, schedules


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.0]),
        ("cosine", [1.0, 0.5 + 0.5**1.5, 0.5, 0.0]),
        ("step", [1.0, 1.0, 0.1, 0.01]),
    ],
)
def test_a_schedule_at_the_start_a_quarter_half_and_the_end(name, values):
    # cosine: two roundings of numbers near 1
    assert [SCHEDULES[name](t) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(values, abs=4e-16)


def test_step_is_a_hundredth_from_three_quarters_on():
    assert [schedules.step(t) for t in (0.749, 0.75, 0.9)] == [0.1, 0.01, 0.01]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_starts_at_one_and_never_rises(name):
    values = [SCHEDULES[name](i / 100) for i in range(101)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)


def test_get_finds_a_schedule_by_name():
    assert schedules.get("cosine") is schedules.cosine


def test_get_returns_a_callable_as_it_is():
    def own(progress):
        return 1.0

    assert schedules.get(own) is own


def test_get_refuses_an_unknown_name():
    with pytest.raises(SettingError, match="schedule: expected one of constant, .*; received 'exponential'"):
        schedules.get("exponential")
