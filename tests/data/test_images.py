"""Padding, mirroring and picking pixels against NumPy."""

import numpy as np
import pytest

from xpnn.data.images import mirror, pad, pick_columns, pick_rows, reflect

X = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5), dtype=np.uint8)


@pytest.mark.parametrize("stored", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize(("mode", "numpys"), [("reflect", "reflect"), ("zero", "constant")])
def test_padding_is_numpys(kind, stored, padding, mode, numpys):
    edges = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    out = kind.check(pad(kind(X, stored), padding, mode), stored)
    np.testing.assert_array_equal(kind.to_numpy(out), np.pad(X, edges, mode=numpys))


def test_images_too_small_to_reflect_are_refused(kind):
    with pytest.raises(ValueError, match="pad: expected images of more than 5 rows and columns to reflect; received 6"):
        pad(kind(X), 5)


def test_reflection_leaves_the_outermost_pixels_alone(kind):
    out = reflect(kind(np.arange(-3, 7), "int64"), 4)
    assert kind.to_numpy(out).tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]


def test_mirror_exchanges_left_and_right(kind):
    np.testing.assert_array_equal(kind.to_numpy(mirror(kind(X))), X[:, :, :, ::-1])


def test_each_image_has_rows_and_columns_of_its_own(kind):
    rows = np.random.default_rng(1).integers(0, 6, (4, 7))
    columns = np.random.default_rng(2).integers(0, 5, (4, 2))
    by_row = kind.to_numpy(pick_rows(kind(X), kind(rows)))
    by_column = kind.to_numpy(pick_columns(kind(X), kind(columns)))
    for n in range(4):
        np.testing.assert_array_equal(by_row[n], X[n][:, rows[n]])
        np.testing.assert_array_equal(by_column[n], X[n][:, :, columns[n]])


def test_what_are_no_images_is_refused(kind):
    with pytest.raises(ValueError, match=r"mirror: expected images x \(N, C, H, W\); received shape \(3,\)"):
        mirror(kind(np.zeros(3)))
