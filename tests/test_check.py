"""The self-check looks at what the tests look at."""

import json
from pathlib import Path

import pytest

from xpnn import check

COURSE = json.loads((Path(__file__).parent / "course_values.json").read_text())["tests"]


def test_the_values_that_ship_are_the_published_ones():
    for name, case in check.reference_values().items():
        assert {key: COURSE[name][key] for key in case} == case


def test_every_check_passes_on_every_kind(kind):
    for result in check.run(kind.backend):
        assert result.passed, result


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (1e-7, True), (2e-7, False), (float("nan"), False)])
def test_an_error_beyond_the_limit_or_no_number_fails(error, passed):
    assert check.Result("x", error, 1e-7).passed is passed
