"""Shifted windows against a slow NumPy Swin attention that loops over windows and tokens."""

import itertools

import jax
import numpy as np
import pytest

from maxquery_jax.ops import windows


def _regions(grid, window, shift):
    """Which of up to three slabs a place belongs to, per axis, as in the Swin Transformer."""
    ids = np.zeros(grid, np.int64)
    for z, y, x in itertools.product(*map(range, grid)):
        for n, side, roll, at in zip(grid, window, shift, (z, y, x), strict=True):
            slab = 0 if not roll or at < n - side else 1 if at < n - roll else 2
            ids[z, y, x] = 3 * ids[z, y, x] + slab
    return ids


def _slow_attention(query, key, value, bias, ids):
    out = np.zeros_like(value)
    for b, w, h in np.ndindex(query.shape[0], query.shape[1], query.shape[3]):
        for t in range(query.shape[2]):
            logits = key[b, w, :, h] @ query[b, w, t, h] / np.sqrt(query.shape[-1]) + bias[h, t]
            if ids is not None:
                logits = np.where(ids[w] == ids[w, t], logits, logits - 100.0)
            weights = np.exp(logits - logits.max())
            out[b, w, t, h] = weights @ value[b, w, :, h] / weights.sum()
    return out


def test_partition_lists_windows_in_raster_order_and_is_undone():
    x = np.arange(2 * 4 * 6 * 2 * 3).reshape(2, 4, 6, 2, 3)
    cut = np.asarray(windows.partition(x, (2, 3, 2)))
    assert cut.shape == (2, 4, 12, 3)
    np.testing.assert_array_equal(cut[1, 1], x[1, 0:2, 3:6, 0:2].reshape(12, 3))
    np.testing.assert_array_equal(cut[1, 2], x[1, 2:4, 0:3, 0:2].reshape(12, 3))
    np.testing.assert_array_equal(windows.unpartition(cut, (2, 3, 2), (4, 6, 2)), x)


def test_an_axis_no_longer_than_the_window_is_one_unshifted_window():
    assert windows.fit_window((9, 7, 2), 7, 3) == ((7, 7, 2), (3, 0, 0))
    assert windows.fit_window((9, 8, 8), 7, 0) == ((7, 7, 7), (0, 0, 0))


@pytest.mark.parametrize(
    ('grid', 'window', 'shift'),
    [((6, 4, 2), (3, 2, 2), (1, 1, 0)), ((8, 8, 4), (4, 4, 4), (2, 2, 0))],
)
def test_regions_are_the_slabs_of_the_shifted_grid(grid, window, shift):
    ids = windows.region_ids(grid, window, shift)
    slow = _regions(grid, window, shift)[None, ..., None]
    np.testing.assert_array_equal(ids, np.asarray(windows.partition(slow, window))[0, ..., 0])
    assert (ids != ids[:, :1]).any()


def test_the_bias_is_looked_up_by_offset():
    side = 3
    table = np.random.default_rng(0).normal(size=((2 * side - 1) ** 3, 2)).astype(np.float32)
    bias = np.asarray(windows.relative_bias(table, side, side**3))
    cube = table.reshape(5, 5, 5, 2)
    place = list(itertools.product(range(side), repeat=3))
    for i, j in itertools.product(range(side**3), repeat=2):
        offset = [a - b + side - 1 for a, b in zip(place[i], place[j], strict=True)]
        np.testing.assert_array_equal(bias[:, i, j], cube[tuple(offset)])
    np.testing.assert_array_equal(windows.relative_bias(table, side, 4), bias[:, :4, :4])


@pytest.mark.parametrize('is_shifted', [False, True])
def test_attention_equals_the_loop_whole_and_in_groups(is_shifted, monkeypatch):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 6, 8, 2, 3)).astype(np.float32) for _ in range(3))
    bias = rng.normal(size=(2, 8, 8)).astype(np.float32)
    ids = rng.integers(0, 3, (6, 8)).astype(np.int32) if is_shifted else None
    slow = _slow_attention(query, key, value, bias, ids)

    def loss_and_output(query, bias):
        output = windows.window_attention(query, key, value, bias, ids)
        return (output**2).sum(), output

    def run():
        gradient = jax.value_and_grad(loss_and_output, argnums=(0, 1), has_aux=True)
        (_, output), gradients = jax.jit(gradient)(query, bias)
        return output, gradients

    whole, whole_gradients = run()
    np.testing.assert_allclose(whole, slow, atol=1e-5)
    monkeypatch.setattr(windows, '_MAX_SIMILARITIES', 2 * 2 * 64 * 2)
    assert windows._num_groups(6, 2 * 2 * 64) == 3
    jax.clear_caches()
    grouped, grouped_gradients = run()
    np.testing.assert_allclose(grouped, slow, atol=1e-5)
    for one, other in zip(whole_gradients, grouped_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
