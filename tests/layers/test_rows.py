"""Sums over many rows."""

import numpy as np
import pytest

from oracles import EPS
from xpnn.backend import namespace
from xpnn.layers.rows import add_rows, sum_rows

SUMS = pytest.mark.parametrize("sum_of", [sum_rows, add_rows])


@SUMS
@pytest.mark.parametrize("n", [0, 1, 100, 1023, 1024, 1025, 96_100])
def test_it_is_the_sum(kind, n, sum_of):
    x = np.random.default_rng(0).integers(-8, 9, (n, 3)).astype("float64")  # whole numbers add up exactly
    received = sum_of(kind(x))
    kind.check(received, "float64", (3,))
    kind.assert_close(received, x.sum(axis=0))


@SUMS
@pytest.mark.parametrize("n", [0, 100, 2000])
def test_it_is_written_to_where_it_is_asked_for(kind, n, sum_of):
    x = np.random.default_rng(0).integers(-8, 9, (n, 3)).astype("float64")
    rows = kind(x)
    out = namespace(rows).ones(3, dtype=rows.dtype, device=rows.device)
    assert sum_of(rows, out) is out
    kind.assert_close(out, x.sum(axis=0))


@SUMS
@pytest.mark.parametrize("n", [96_100, 96_101, 102_400, 450_000])
def test_float32_loses_few_digits_however_many_rows(n, sum_of):
    x = np.random.default_rng(0).uniform(0, 1, (n, 3)).astype("float32")
    truth = x.astype("float64").sum(axis=0)
    # 256 rows to a block and some thousand blocks: their roundings add up at random
    np.testing.assert_allclose(sum_of(x), truth, rtol=20 * EPS["float32"])
