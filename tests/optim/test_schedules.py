"""Learning-rate schedules."""

import math
import pickle

import pytest

from xpnn.errors import SettingError
from xpnn.optim import SCHEDULES, schedules

FALLING = ("constant", "linear", "cosine", "step", "exponential")
EPS = 2.0**-52


def at(schedule, *progress):
    return [schedule(t) for t in progress]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.0]),
        ("cosine", [1.0, 0.5 + 0.5**1.5, 0.5, 0.0]),
        ("step", [1.0, 1.0, 0.1, 0.01]),
        ("exponential", [1.0, 0.1**0.5, 0.1, 0.01]),
        ("warmup_linear", [0.0, 0.75 / 0.9, 0.5 / 0.9, 0.0]),
        ("warmup_cosine", [0.0, 0.5 + 0.5 * math.cos(math.pi / 6), 0.5 + 0.5 * math.cos(math.pi * 4 / 9), 0.0]),
        ("one_cycle", [0.04, 0.52 - 0.48 * math.cos(math.pi / 1.2), 0.50005 + 0.49995 * math.cos(math.pi / 3.5), 1e-4]),
    ],
)
def test_a_schedule_at_the_start_a_quarter_half_and_the_end(name, values):
    # a few roundings of numbers near 1
    assert at(SCHEDULES[name], 0.0, 0.25, 0.5, 1.0) == pytest.approx(values, abs=4 * EPS)


def test_step_is_a_hundredth_from_three_quarters_on():
    assert at(schedules.step, 0.749, 0.75, 0.9) == [0.1, 0.01, 0.01]


@pytest.mark.parametrize("name", FALLING)
def test_a_schedule_without_a_warm_up_starts_at_one_and_never_rises(name):
    values = [SCHEDULES[name](i / 100) for i in range(101)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - set(FALLING)))
def test_a_schedule_with_a_warm_up_rises_to_one_and_falls(name):
    values = [SCHEDULES[name](i / 100) for i in range(101)]
    top = values.index(max(values))
    assert values[top] == pytest.approx(1.0, abs=EPS)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


@pytest.mark.parametrize(("make", "warmup"), [(schedules.warmup_linear, 0.25), (schedules.warmup_cosine, 0.25)])
def test_a_warm_up_is_a_straight_line(make, warmup):
    assert at(make(warmup), 0.0, 0.0625, 0.125, 0.25) == [0.0, 0.25, 0.5, 1.0]


def test_no_warm_up_is_the_schedule_alone():
    assert at(schedules.warmup_linear(0.0), 0.0, 0.5, 1.0) == [1.0, 0.5, 0.0]


def test_one_cycle_is_at_one_at_its_peak():
    assert at(schedules.one_cycle(peak=0.25, start=0.5, end=0.0), 0.0, 0.125, 0.25, 0.625, 1.0) == pytest.approx(
        [0.5, 0.75, 1.0, 0.5, 0.0], abs=2 * EPS
    )


def test_piecewise_is_straight_between_its_points():
    schedule = schedules.piecewise((0, 0.2), (0.25, 1), (1, 0.25))
    assert at(schedule, 0.0, 0.125, 0.25, 0.625, 1.0) == pytest.approx([0.2, 0.6, 1.0, 0.625, 0.25], abs=EPS)


def test_piecewise_is_level_outside_its_points():
    schedule = schedules.piecewise((0.25, 0.5), (0.5, 1.0))
    assert at(schedule, 0.0, 0.25, 0.375, 0.5, 1.0) == [0.5, 0.5, 0.75, 1.0, 1.0]
    assert at(schedules.piecewise((0.5, 0.25)), 0.0, 0.5, 1.0) == [0.25] * 3


def test_steps_go_down_by_a_factor_at_each_milestone():
    assert at(schedules.steps((0.25, 0.5), 0.5), 0.0, 0.249, 0.25, 0.5, 1.0) == [1.0, 1.0, 0.5, 0.25, 0.25]


def test_get_finds_a_schedule_by_name():
    assert schedules.get("cosine") is schedules.cosine
    assert schedules.get("one-cycle") is schedules.get("one_cycle") is SCHEDULES["one_cycle"]


def test_get_returns_a_callable_as_it_is():
    def own(progress):
        return 1.0

    assert schedules.get(own) is own


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("one-cycle:peak=0.2", schedules.one_cycle(peak=0.2)),
        ("one_cycle:0.2,end=0,start=0.5", schedules.one_cycle(0.2, 0.5, 0.0)),
        ("piecewise:0=0.2,0.23=1,1=0.07", schedules.piecewise((0, 0.2), (0.23, 1), (1, 0.07))),
        ("step:0.5,0.75", schedules.steps((0.5, 0.75))),
        ("step: 0.25, factor=0.5", schedules.steps((0.25,), 0.5)),
        ("exponential:final=1e-3", schedules.exponential(1e-3)),
        ("warmup-linear:0.2", schedules.warmup_linear(0.2)),
        ("warmup-cosine:warmup=0.2", schedules.warmup_cosine(0.2)),
    ],
)
def test_get_takes_arguments_after_a_colon(text, same):
    progress = [i / 50 for i in range(51)]
    assert at(schedules.get(text), *progress) == at(same, *progress)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("polynomial", "schedule: expected one of constant, .*piecewise, or a callable; received 'polynomial'"),
        (3, "schedule: expected one of constant, .*; received 3"),
        ("cosine:0.5", "schedule: expected cosine without arguments; received 'cosine:0.5'"),
        ("piecewise", "schedule: expected a text such as 'piecewise:0=0.2,0.23=1,1=0.07'; received 'piecewise'"),
        ("piecewise:0,1", "schedule: expected a text such as 'piecewise:.*; received 'piecewise:0,1'"),
        ("piecewise:0=1,0=2", "piecewise: expected points whose progress rises within .*; received .*0.0, 1.0"),
        ("piecewise:0=-1", "piecewise: expected factors of at least 0; received .*-1.0"),
        ("piecewise:0=nan", "piecewise: expected factors of at least 0; received .*nan"),
        ("step:", "schedule: expected a text such as 'step:0.5,0.75,factor=0.1'; received 'step:'"),
        ("step:0.5,0.25", "steps: expected milestones that rise within .0, 1.; received .0.5, 0.25"),
        ("step:1.5", "steps: expected milestones that rise within .0, 1.; received .1.5"),
        ("step:factor=0.5", "steps: expected milestones that rise within .0, 1.; received .."),
        ("step:0.5,factor=0", "steps: expected a factor above 0, at most 1; received 0.0"),
        ("step:0.1,0.2,factor=1e200", "steps: expected a factor above 0, at most 1; received 1e.200"),
        ("one-cycle:pek=0.2", "schedule: expected a text such as 'one-cycle:peak=.*; received 'one-cycle:pek=0.2'"),
        ("one-cycle:peak=high", "schedule: expected a text such as 'one-cycle:peak=.*'one-cycle:peak=high'"),
        ("one-cycle:peak=1", "schedule 'one-cycle:peak=1': one-cycle: expected peak to be above 0 and below 1.* 1.0"),
        ("one-cycle:start=2", "one-cycle: expected start to be from 0 to 1; received 2.0"),
        ("one-cycle:end=nan", "one-cycle: expected end to be from 0 to 1; received nan"),
        ("exponential:0", "exponential: expected final to be above 0, at most 1; received 0.0"),
        ("warmup-linear:1", "warmup-linear: expected warmup to be at least 0 and below 1; received 1.0"),
        ("warmup-cosine:-1", "warmup-cosine: expected warmup to be at least 0 and below 1; received -1.0"),
    ],
)
def test_what_is_no_schedule_is_refused(text, message):
    with pytest.raises(SettingError, match=message):
        schedules.get(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.one_cycle(peak="a"), "one-cycle: expected peak to be above 0 and below 1; received 'a'"),
        (lambda: schedules.one_cycle(end=None), "one-cycle: expected end to be from 0 to 1; received None"),
        (lambda: schedules.exponential("a"), "exponential: expected final to be above 0, at most 1; received 'a'"),
        (lambda: schedules.warmup_linear("a"), "warmup-linear: expected warmup to be at least 0 .*; received 'a'"),
        (lambda: schedules.piecewise([]), r"piecewise: expected points \(progress, factor\); received \[\]"),
        (lambda: schedules.piecewise(0.5), r"piecewise: expected points \(progress, factor\); received 0.5"),
        (
            lambda: schedules.piecewise((0, "a")),
            r"piecewise: expected points \(progress, factor\); received \(0, 'a'\)",
        ),
        (lambda: schedules.steps("a"), "steps: expected milestones that rise within .0, 1.; received 'a'"),
        (lambda: schedules.steps(0.5), "steps: expected milestones that rise within .0, 1.; received 0.5"),
        (lambda: schedules.steps([0.5], "a"), "steps: expected a factor above 0, at most 1; received 'a'"),
    ],
)
def test_what_makes_no_schedule_is_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_piecewise_needs_points():
    with pytest.raises(SettingError, match="piecewise: expected points .*; received none"):
        schedules.piecewise()


@pytest.mark.parametrize("text", [*SCHEDULES, "piecewise:0=0.2,1=1", "step:0.5"])
def test_a_schedule_can_be_pickled(text):
    schedule = schedules.get(text)
    assert at(pickle.loads(pickle.dumps(schedule)), 0.0, 0.3, 1.0) == at(schedule, 0.0, 0.3, 1.0)


def test_a_sample_goes_from_the_start_to_the_end():
    assert schedules.sample("linear", 5) == ([0.0, 0.25, 0.5, 0.75, 1.0], [1.0, 0.75, 0.5, 0.25, 0.0])
    ts, factors = schedules.sample(schedules.cosine)
    assert len(ts) == len(factors) == 200
    assert (ts[0], ts[-1]) == (0.0, 1.0)


def test_a_sample_has_two_values_at_least():
    with pytest.raises(SettingError, match="sample: expected at least 2 values; received 1"):
        schedules.sample("linear", 1)
