"""Padding, mirroring and picking pixels against NumPy."""

import numpy as np
import pytest

from xpnn.data.images import mirror, pad, picked

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


def test_mirror_exchanges_left_and_right(kind):
    np.testing.assert_array_equal(kind.to_numpy(mirror(kind(X))), X[:, :, :, ::-1])


def test_each_image_has_rows_and_columns_of_its_own(kind):
    indices = np.array([2, 0, 2])
    rows = np.random.default_rng(1).integers(0, 6, (3, 7))
    columns = np.random.default_rng(2).integers(0, 5, (3, 2))
    by_row = kind.check(picked(kind(X), kind(indices), (kind(rows),)), "uint8")
    by_column = picked(kind(X)[:3, ...], columns=(kind(columns),))
    by_both = picked(kind(X), kind(indices), (kind(rows),), (kind(columns),))
    for n, index in enumerate(indices):
        np.testing.assert_array_equal(kind.to_numpy(by_row)[n], X[index][:, rows[n]])
        np.testing.assert_array_equal(kind.to_numpy(by_column)[n], X[n][:, :, columns[n]])
        np.testing.assert_array_equal(kind.to_numpy(by_both)[n], X[index][:, rows[n]][:, :, columns[n]])


def test_examples_of_any_shape_are_picked(kind):
    x = np.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(kind.to_numpy(picked(kind(x), kind(np.array([3, 1])))), x[[3, 1]])
    images = kind(X)
    assert picked(images) is images


def test_of_no_images_none_are_picked(kind):
    none = kind(np.zeros((0, 6), "int64"))
    kind.check(picked(kind(X), kind(np.zeros(0, "int64")), (none,), (none,)), "uint8", (0, 3, 6, 6))


def test_what_are_no_images_is_refused(kind):
    with pytest.raises(ValueError, match=r"mirror: expected images x \(N, C, H, W\); received shape \(3,\)"):
        mirror(kind(np.zeros(3)))
