"""The noise is Philox4x32-10 and nothing but a function of (seed, position, token id)."""

import math

import numpy as np
import pytest

from paceline import noise
from paceline.noise import MAX_GUMBEL, MAX_SEED, MIN_GUMBEL, gumbel, philox4x32

# Published known answers of Random123: (counter words, key words, output words).
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def slow_philox(counter, key):
    """The definition, one block at a time, in Python integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (second >> 32) ^ c[1] ^ k0,
            second & 0xFFFFFFFF,
            (first >> 32) ^ c[3] ^ k1,
            first & 0xFFFFFFFF,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def slow_gumbel(seed, position, token_id):
    counter = (position & 0xFFFFFFFF, position >> 32, token_id, 0)
    high, low, *_ = slow_philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    uniform = (((high << 32 | low) >> 11) | 1) / 2**53
    return -math.log(-math.log(uniform))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert slow_philox(counter, key) == expected
    column = np.array(counter, np.uint64)[:, None]
    assert philox4x32(key[0] | key[1] << 32, column)[:, 0].tolist() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 + 12345, MAX_SEED])
@pytest.mark.parametrize("position", [0, 7, 2**32 - 1, 2**32, 2**64 - 1])
def test_noise_equals_the_definition(seed, position):
    ids = [0, 1, 2, 262_143, 2**32 - 1]
    expected = [slow_gumbel(seed, position, token_id) for token_id in ids]
    # The two logarithms come from different libraries: each is right to one unit in the last
    # place, and the outer one magnifies nothing because |log x| changes by dx / x.
    np.testing.assert_allclose(gumbel(seed, position, np.array(ids)), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", [3, 2**40 + 5])
def test_few_ids_get_the_bits_of_many(seed):
    """Few are hashed in Python's integers, many in arrays."""
    ids = np.array([0, 5, 262_143, 2**32 - 1, *range(100, 200)])
    for position in (0, 90_001, 2**33 + 1):
        many = gumbel(seed, position, ids)
        for begin, end in ((0, 1), (1, 3), (4, 4 + noise._FEW), (0, 1 + noise._FEW)):
            assert gumbel(seed, position, ids[begin:end]).tolist() == many[begin:end].tolist()


def test_a_token_gets_the_same_bits_in_any_company():
    """Order, neighbours, integer type and the block boundary must not show."""
    ids = np.arange(2 * noise._BLOCK + 5)
    whole = gumbel(9, 1234, ids)
    shuffled = np.random.default_rng(0).permutation(ids)
    assert (gumbel(9, 1234, shuffled) == whole[shuffled]).all()
    for size in (1, 2, 3, 7, 8, 17):
        start = noise._BLOCK - size // 2
        assert (gumbel(9, 1234, ids[start : start + size]) == whole[start : start + size]).all()
    assert (gumbel(9, 1234, ids[::3].astype(np.int32)) == whole[::3]).all()


def test_no_ids_no_noise():
    assert gumbel(1, 2, np.array([], np.int64)).shape == (0,)


def test_every_bit_of_seed_position_and_id_counts():
    base = (0x0123456789ABCDEF, 0x0FEDCBA987654321, 0x89ABCDEF)
    seen = {gumbel(base[0], base[1], np.array([base[2]])).item()}
    for which, bits in enumerate((64, 64, 32)):
        for bit in range(bits):
            seed, position, token_id = (
                value ^ (1 << bit if index == which else 0) for index, value in enumerate(base)
            )
            seen.add(gumbel(seed, position, np.array([token_id])).item())
    assert len(seen) == 1 + 64 + 64 + 32


@pytest.mark.parametrize(("word", "bound"), [(0, MIN_GUMBEL), (0xFFFFFFFF, MAX_GUMBEL)])
def test_the_extreme_words_give_the_stated_bounds(monkeypatch, word, bound):
    """The draw's shortcut relies on these two: no words lie outside them."""
    monkeypatch.setattr(noise, "philox4x32", lambda _, counter: np.full_like(counter, word))
    monkeypatch.setattr(noise, "_first_words", lambda *_: word << 32 | word)
    for count in (1, 100):
        values = gumbel(0, 0, np.arange(count))
        assert np.isfinite(values).all()
        assert values == pytest.approx(bound, abs=1e-14)


@pytest.mark.parametrize("axis", ["token", "position", "seed"])
def test_noise_is_gumbel_along_every_axis(axis):
    """exp(-exp(-g)) is uniform: chi-square over 64 cells of 16,384 values. A right generator
    exceeds 131.4 (63 degrees of freedom) once in a million; the seeds are fixed."""
    count = 16_384
    if axis == "token":
        values = gumbel(5, 77, np.arange(count))
    else:
        ids = np.arange(16)
        keys = range(count // len(ids))
        columns = [gumbel(key, 77, ids) if axis == "seed" else gumbel(5, key, ids) for key in keys]
        values = np.concatenate(columns)
    cells, _ = np.histogram(np.exp(-np.exp(-values)), bins=64, range=(0.0, 1.0))
    expected = count / 64
    assert ((cells - expected) ** 2 / expected).sum() < 131.4
