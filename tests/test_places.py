"""Where moved rows and columns come from, against NumPy."""

import numpy as np

from xpnn.places import Mirrored, Shifted, places_of, reflect


def test_reflection_leaves_the_outermost_pixels_alone(kind):
    out = reflect(kind(np.arange(-3, 7), "int64"), 4)
    assert kind.to_numpy(out).tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]


def test_nothing_moves_without_places():
    assert places_of((), 4) is None


def test_shifted_rows_come_from_further_on(kind):
    where = kind.check(places_of((Shifted(kind(np.array([0, 2, -1]))),), 4), "int64")
    assert kind.to_numpy(where).tolist() == [[0, 1, 2, 3], [2, 3, 2, 1], [1, 0, 1, 2]]


def test_beyond_the_edges_there_may_be_a_row_of_zeros(kind):
    where = kind.check(places_of((Shifted(kind(np.array([0, 2, -5])), "zero"),), 4), "int64")
    assert kind.to_numpy(where).tolist() == [[0, 1, 2, 3], [2, 3, 4, 4], [4, 4, 4, 4]]


def test_zeros_stay_zeros_when_they_are_moved_again(kind):
    chain = Shifted(kind(np.array([1])), "zero"), Mirrored(kind(np.array([1]))), Shifted(kind(np.array([1])))
    assert kind.to_numpy(places_of(chain, 4)).tolist() == [[3, 2, 1, 2]]
    chain = Shifted(kind(np.array([1])), "zero"), kind(np.array([[3, 0, 1]])), Shifted(kind(np.array([-1])), "zero")
    assert kind.to_numpy(places_of(chain, 4)).tolist() == [[4, 4, 1]]


def test_mirrored_columns_come_from_the_other_end_where_a_coin_is_1(kind):
    where = kind.check(places_of((Mirrored(kind(np.array([0, 1]))),), 4), "int64")
    assert kind.to_numpy(where).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


def test_places_one_after_the_other_are_those_of_images_that_are_moved_so(kind):
    rng = np.random.default_rng(0)
    shifts, coins, others = rng.integers(-2, 3, 5), rng.integers(0, 2, 5), rng.integers(0, 3, (5, 7))
    steps = [rng.integers(0, 4, (5, 3)), others, coins, shifts]
    chain = (kind(steps[0]), kind(others), Mirrored(kind(coins)), Shifted(kind(shifts)))
    where = kind.to_numpy(places_of(chain, 4))
    for n in range(5):
        row = np.arange(4)[steps[0][n]][others[n]]
        row = row[::-1] if coins[n] else row
        row = np.pad(row, 2, mode="reflect")[2 + shifts[n] :][:7]
        np.testing.assert_array_equal(where[n], row)
