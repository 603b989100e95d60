"""Sortable ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.ids import ENTROPY_BYTES, sortable_id

moments = st.integers(0, 2**48 - 1)
entropies = st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES)


@given(moments, moments, entropies, entropies)
def test_ids_sort_by_the_time_they_were_made(earlier, later, one, other):
    """Text order is time order, whatever the entropy; a database index may rely on it."""
    earlier, later = sorted((earlier, later))
    if earlier < later:
        assert sortable_id("bk_", earlier, one) < sortable_id("bk_", later, other)


@given(moments, entropies, entropies)
def test_ids_of_one_millisecond_differ_by_their_entropy(moment, one, other):
    """All of the entropy is in the id."""
    assert (sortable_id("x", moment, one) == sortable_id("x", moment, other)) == (one == other)


def test_an_id_is_its_prefix_and_32_hex_digits():
    """The length never changes, which a column's width may rely on."""
    assert sortable_id("sl_", 1, bytes(range(10))) == "sl_00000000000100010203040506070809"


@pytest.mark.parametrize("size", [0, ENTROPY_BYTES - 1, ENTROPY_BYTES + 1])
def test_too_little_entropy_is_an_error(size):
    """Nobody gets ids that clash by passing fewer bytes."""
    with pytest.raises(ValueError, match="entropy"):
        sortable_id("x", 0, bytes(size))
