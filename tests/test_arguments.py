"""Checks of arguments that are not arrays."""

import numpy as np
import pytest

from xpnn.arguments import check_flag, check_keys, check_number, check_whole
from xpnn.errors import SettingError


def test_values_come_back_as_pythons_own():
    assert type(check_whole("f", "n", np.int64(3))) is int
    assert type(check_number("f", "x", np.float32(0.5))) is float
    assert check_flag("f", "b", np.bool_(False)) is False


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**400, 1.0, "1", None, [1]])
def test_what_is_no_whole_number_within_bounds_is_refused(value):
    with pytest.raises(SettingError, match=r"^f: expected n, a whole number of at least 1, below 2\*\*31; received"):
        check_whole("f", "n", value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 10**400, 1j, "1", None, [1.0]])
def test_what_is_no_finite_number_of_the_range_is_refused(value):
    with pytest.raises(SettingError, match=r"^f: expected x of at least 0; received"):
        check_number("f", "x of at least 0", value, lambda number: number >= 0)


@pytest.mark.parametrize("value", ["no", 1, None])
def test_what_is_not_true_or_false_is_refused(value):
    with pytest.raises(TypeError, match=f"^f: expected b, True or False; received {value!r}"):
        check_flag("f", "b", value)


def test_unknown_keys_are_refused_and_private_ones_are_not_offered():
    check_keys("f", {"a": 1, "c": 2}, "a", "b", private=("c",))
    with pytest.raises(ValueError, match="^f: expected a dict of a and b; received 'd', 3$"):
        check_keys("f", {"d": 1, 3: 1, "a": 1}, "a", "b", private=("c",))
    with pytest.raises(TypeError, match="^f: expected a dict of a and b; received list$"):
        check_keys("f", ["a"], "a", "b")
