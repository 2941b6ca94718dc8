"""The ranks' shares of a batch are all of it, whatever samples leave."""

from types import SimpleNamespace

import branchynet  # noqa: F401
from branchynet.shares import SharedBatch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


@given(batch=st.integers(1, 20), ranks=st.integers(1, 6), data=st.data())
def test_every_sample_is_on_one_rank_and_weighs_the_same(batch, ranks, data):
    shares = [SharedBatch(batch, SimpleNamespace(rank=rank, size=ranks)) for rank in range(ranks)]
    on_rank = [np.arange(batch)[share.samples] for share in shares]
    remaining = np.arange(batch)
    for _ in range(3):  # exits
        # What a rank's mean weighs is what its samples do: one that does not count stands in where there are none.
        weights = [share.weighted(1.0) for share in shares]
        counted = [samples[:0] if weight == 0 else samples for samples, weight in zip(on_rank, weights)]
        np.testing.assert_array_equal(np.concatenate(counted), remaining)
        assert weights == pytest.approx([ranks * len(samples) / len(remaining) for samples in counted])
        assert all(len(samples) for samples in on_rank)
        kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(remaining), max_size=len(remaining))))
        on_rank = [samples[share.keep(kept)] for samples, share in zip(on_rank, shares)]
        remaining = remaining[kept]
        assert {share.remaining for share in shares} == {len(remaining)}
        if not len(remaining):
            assert not any(len(samples) for samples in on_rank)
            return


@given(batch=st.integers(1, 1000), ranks=st.integers(1, 64))
def test_shares_differ_by_one_sample_at_most(batch, ranks):
    sizes = [batch * (rank + 1) // ranks - batch * rank // ranks for rank in range(ranks)]
    assert max(sizes) - min(sizes) <= 1
    for rank, size in enumerate(sizes):
        samples = SharedBatch(batch, SimpleNamespace(rank=rank, size=ranks)).samples
        assert samples.stop - samples.start == max(size, 1)
