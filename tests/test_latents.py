"""Ways through a space of codes."""

import numpy as np
import pytest

from gentf.sampling.latents import linear, spherical, traverse


@pytest.mark.parametrize("way", [linear, spherical])
def test_ways_start_and_end_where_they_should(way):
    generator = np.random.default_rng(0)
    first, last = generator.normal(size=(2, 4, 6)).astype(np.float32)
    found = way(first, last, 5)
    assert found.shape == (4, 5, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], first, atol=1e-5)
    np.testing.assert_allclose(found[:, -1], last, atol=1e-5)
    np.testing.assert_allclose(way(first[0], last[0], 5), found[0], atol=1e-6)


def test_a_circle_keeps_the_length_and_goes_at_one_pace():
    first, last = np.float32([3, 0, 0]), np.float32([0, 3, 0])
    found = spherical(first, last, 7)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 3, rtol=1e-5)
    np.testing.assert_allclose(np.degrees(np.arctan2(found[:, 1], found[:, 0])), np.linspace(0, 90, 7), atol=1e-3)
    assert np.linalg.norm(linear(first, last, 3)[1]) == pytest.approx(3 / np.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("last", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
def test_codes_on_one_line_are_joined_by_it(last):
    first, last = np.float32([1.0, 0.0]), np.float32(last)
    np.testing.assert_allclose(spherical(first, last, 4), linear(first, last, 4), atol=1e-6)


def test_a_traversal_changes_one_number():
    code = np.float32([1, 2, 3])
    found = traverse(code, np.array([2, 0]), np.array([-1, 0, 1]))
    assert found.shape == (2, 3, 3)
    np.testing.assert_array_equal(found[0], [[1, 2, -1], [1, 2, 0], [1, 2, 1]])
    np.testing.assert_array_equal(found[1], [[-1, 2, 3], [0, 2, 3], [1, 2, 3]])
    with pytest.raises(ValueError, match="`dimensions` must be places"):
        traverse(code, np.array([3]), np.array([0]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`steps` must be at least 2"):
        linear(np.zeros(2), np.ones(2), 1)
    with pytest.raises(ValueError, match="`last` must be of the shape"):
        spherical(np.zeros(2), np.ones(3), 3)
