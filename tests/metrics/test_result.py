"""Intervals of rates, against the tails of the binomial distribution."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from tempertilt.errors import ConfigError
from tempertilt.metrics import clopper_pearson


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 24), (7, 20), (20, 20), (3, 1000)])
def test_the_interval_is_where_the_binomial_tails_are(hits: int, n: int) -> None:
    low, high = clopper_pearson(hits, n, 0.9)
    assert low == 0 if not hits else binom.sf(hits - 1, n, low) == pytest.approx(0.05)
    assert high == 1 if hits == n else binom.cdf(hits, n, high) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="must be 0 to n hits"):
        clopper_pearson(n + 1, n)
    with pytest.raises(ConfigError, match="level is 1"):
        clopper_pearson(hits, n, 1)
