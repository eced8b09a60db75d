"""Sums over many rows."""

import numpy as np
import pytest

from oracles import EPS
from xpnn.layers.rows import over_rows


@pytest.mark.parametrize("n", [1, 100, 1023, 1024, 1025, 96_100])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_it_is_the_sum_or_the_mean(kind, n, reduce):
    x = np.random.default_rng(0).integers(-8, 9, (n, 3)).astype("float64")  # whole numbers add up exactly
    received = over_rows(getattr(kind.xp, reduce), kind(x))
    kind.check(received, "float64", (3,))
    kind.assert_close(received, getattr(x, reduce)(axis=0), rtol=4 * EPS["float64"], atol=1e-15)


@pytest.mark.parametrize("n", [96_100, 102_400, 450_000])
def test_float32_loses_few_digits_however_many_rows(n):
    x = np.random.default_rng(0).uniform(0, 1, (n, 3)).astype("float32")
    truth = x.astype("float64").sum(axis=0)
    # 256 rows to a block and some thousand blocks: their roundings add up at random
    np.testing.assert_allclose(over_rows(np.sum, x), truth, rtol=20 * EPS["float32"])
