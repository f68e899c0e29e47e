import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmill.data.randomness import Permutation, below, make_key, random_bits, uniform


def test_permutation_is_a_bijection_for_every_small_n():
    for n in range(1, 400):
        image = Permutation(n, make_key(n, "test"))(np.arange(n))
        assert sorted(image.tolist()) == list(range(n))


@given(st.integers(1, 10**12), st.integers(0, 2**63), st.data())
def test_permutation_stays_inside_and_is_injective(n, seed, data):
    indices = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=50))
    image = Permutation(n, make_key(seed, "test"))(np.array(sorted(indices)))
    assert len(set(image.tolist())) == len(indices)
    assert image.min() >= 0 and image.max() < n


def test_permutation_computes_the_same_index_by_index():
    whole = Permutation(1000, 7)(np.arange(1000))
    assert [int(Permutation(1000, 7)(np.array([i]))[0]) for i in (0, 17, 999)] == [
        int(whole[i]) for i in (0, 17, 999)
    ]


def test_permutations_of_neighboring_keys_share_no_more_than_chance():
    n = 10_000
    one, two = (Permutation(n, make_key(seed, "order", 0))(np.arange(n)) for seed in (1, 2))
    # Fixed points in common are Poisson with mean 1.
    assert (one == two).sum() < 10


def test_keys_are_mixed_not_added():
    assert make_key(1, "pairs", 2) != make_key(2, "pairs", 1)
    assert make_key(1, "pairs", 2) != make_key(3, "pairs", 0)
    assert make_key(1, "pairs") != make_key(1, "masks")
    assert make_key(1, "pairs", 1, 23) != make_key(1, "pairs", 12, 3)


def test_golden_bits_never_change():
    # A change here changes every run that people have: old checkpoints would not resume exactly.
    assert make_key(1, "pairs", 0) == 0xFA9FC1B5CB5533F8
    assert random_bits(1, 2, 3).tolist() == [0xD892BCCA058519C7]
    assert Permutation(10, 1)(np.arange(10)).tolist() == [6, 9, 1, 7, 4, 5, 3, 2, 8, 0]


def test_draws_depend_on_the_counter_alone_not_on_the_array_they_come_in():
    many = random_bits(5, np.arange(100), 3)
    assert random_bits(5, 42, 3)[0] == many[42]


def test_counters_do_not_commute():
    assert random_bits(1, 2, 3)[0] != random_bits(1, 3, 2)[0]


def test_uniform_fills_the_unit_interval_evenly():
    draws = uniform(make_key(3, "test"), np.arange(100_000))
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    chi_squared = ((counts - 5000) ** 2 / 5000).sum()
    assert draws.min() >= 0 and draws.max() < 1
    assert chi_squared < 50  # 19 degrees of freedom: beyond 50 is one in ten thousand


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000, 2**32])
def test_below_stays_below(limit):
    draws = below(limit, make_key(4, "test"), np.arange(20_000))
    assert draws.min() >= 0 and draws.max() < limit
    if limit <= 7:
        assert set(draws.tolist()) == set(range(limit))
