"""Resampling against scipy's own spline and plain loops; statistics against numpy."""

import pathlib
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from maxquery_jax.data import preprocess

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'nnunet_resampling.npz'
SPACINGS = [
    ((1, 1, 1), (1.3, 0.8, 1)),
    ((2, 2, 2), (1, 1, 1)),
    ((1, 1, 1), (2, 2, 2)),
    ((2.3, 0.9, 0.8), (1.7, 1.7, 1.7)),
]


def smooth(shape, seed=0, dtype=np.float32):
    noise = np.random.default_rng(seed).normal(size=shape) * 900
    return ndimage.gaussian_filter(noise, 1.2).astype(dtype)


def blobs(shape, count, seed=0):
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(count)]
    return np.argmax(fields, axis=0).astype(np.uint8)


@pytest.mark.parametrize(('old', 'new'), SPACINGS)
@pytest.mark.parametrize('order', [1, 3])
def test_image_is_scipys_spline(old, new, order):
    image = smooth((40, 35, 33))
    result = preprocess.resample_image(image, old, new, order=order)
    shape = [round(n * a / b) for n, a, b in zip(image.shape, old, new, strict=True)]
    zoom = np.divide(shape, image.shape)
    expected = ndimage.zoom(image.astype(float), zoom, order=order, mode='nearest', grid_mode=True)
    np.testing.assert_allclose(result, expected.clip(image.min(), image.max()), atol=2e-3)
    assert result.dtype == np.float32


def test_integers_are_rounded_and_do_not_overshoot():
    image = np.full((12, 12, 12), -1000, np.int16)
    image[4:8, 4:8, 4:8] = 1000
    result = preprocess.resample_image(image, (1, 1, 1), (0.6, 0.7, 0.8))
    assert result.dtype == np.int16
    assert result.min() == -1000 and result.max() == 1000
    exact = preprocess.resample_image(image.astype(np.float32), (1, 1, 1), (0.6, 0.7, 0.8))
    np.testing.assert_array_equal(result, np.rint(exact))


def test_same_grid_is_untouched():
    image = smooth((5, 6, 7), dtype=np.int16)
    assert preprocess.resample_image(image, (3, 1, 1), (3.0, 1.0, 1.0)) is image
    label = blobs((5, 6, 7), 3)
    assert preprocess.resample_label(label, (3, 1, 1), (3, 1, 1)) is label


def test_coarse_axis_takes_the_nearest_slice():
    """Beyond anisotropy 3 each output slice is one input slice, resampled in its plane."""
    image = smooth((8, 30, 28))
    result = preprocess.resample_image(image, (5, 1, 1), (2.2, 1.25, 1.25))
    assert result.shape == (18, 24, 22)
    zoom = (24 / 30, 22 / 28)
    for z, plane in enumerate(result):
        source = image[int(np.floor((z + 0.5) * 8 / 18))].astype(float)
        expected = ndimage.zoom(source, zoom, order=3, mode='nearest', grid_mode=True)
        np.testing.assert_allclose(plane, expected.clip(image.min(), image.max()), atol=2e-3)


@pytest.mark.parametrize(
    ('old', 'new', 'axis'),
    [
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (5, 1, 1), 0),
        ((1, 1, 4), (1, 1, 1), 2),
        ((3, 1, 1), (1, 1, 1), None),  # exactly 3 is not beyond
        ((0.24, 1.25, 1.25), (1, 1, 1), None),  # two coarse axes
        ((1, 1, 1), (1, 1, 1), None),
    ],
)
def test_which_axis_is_coarse(old, new, axis):
    assert preprocess.coarse_axis(old, new) == axis


@pytest.mark.parametrize(('old', 'new'), SPACINGS)
def test_labels_by_linear_vote(old, new):
    label = blobs((24, 21, 20), 5)
    result = preprocess.resample_label(label, old, new)
    zoom = np.divide(result.shape, label.shape)
    shares = np.stack(
        [
            ndimage.zoom((label == i).astype(float), zoom, order=1, mode='nearest', grid_mode=True)
            for i in range(5)
        ]
    )
    expected = 4 - np.argmax(shares[::-1].round(4), axis=0)  # ties to the higher id
    assert (result != expected).mean() < 1e-3
    # Where nnU-Net's rule (at least half) decides, it decides the same.
    decided = (shares.max(0) > 0.5 + 1e-4) & (result != expected)
    assert not decided.any()


def test_labels_by_nearest_voxel_and_thin_structures():
    label = np.zeros((9, 9, 9), np.uint8)
    label[:, 4, 4] = 200
    up = preprocess.resample_label(label, (3, 3, 3), (1, 1, 1), method='nearest')
    np.testing.assert_array_equal(up, label.repeat(3, 0).repeat(3, 1).repeat(3, 2))
    for method in ('linear', 'nearest'):
        down = preprocess.resample_label(label, (1, 1, 1), (3, 3, 3), method=method)
        assert down.shape == (3, 3, 3) and (down[:, 1, 1] == 200).all() and down.sum() == 600
    gone = preprocess.resample_label(np.roll(label, 1, 1), (1, 1, 1), (1, 3, 3))
    assert gone.max() == 0


def test_label_ids_are_checked_before_the_cast():
    with pytest.raises(ValueError, match='300'):
        preprocess.resample_label(np.full((3, 3, 3), 300), (1, 1, 1), (2, 2, 2))
    with pytest.raises(ValueError, match='cubic'):
        preprocess.resample_label(
            np.zeros((3, 3, 3), np.uint8), (1, 1, 1), (2, 2, 2), method='cubic'
        )


def test_going_back_restores_the_shape():
    image = smooth((17, 31, 29))
    there = preprocess.resample_image(image, (2.5, 0.8, 0.8), (3, 1.1, 1.1))
    back = preprocess.resample_image(there, (3, 1.1, 1.1), (2.5, 0.8, 0.8), shape=image.shape)
    assert back.shape == image.shape
    assert np.corrcoef(back.ravel(), image.ravel())[0, 1] > 0.95


@pytest.mark.parametrize('shape', [(1, 9, 9), (9, 1, 1), (1, 1, 1)])
def test_single_slices(shape):
    image = np.full(shape, 40, np.int16)
    result = preprocess.resample_image(image, (5, 1, 1), (1.7, 0.9, 0.9))
    assert (result == 40).all()
    assert preprocess.resample_label(image, (5, 1, 1), (1.7, 0.9, 0.9)).max() == 40


@pytest.mark.parametrize('kind', ['image', 'label'])
def test_memory_is_input_output_and_slices(kind):
    volume = np.zeros((240, 96, 96), np.int16 if kind == 'image' else np.uint8)
    volume[50:200, 20:70, 20:70] = 3
    function = getattr(preprocess, f'resample_{kind}')
    function(volume[:40], (1, 1, 1), (1.5, 1.5, 1.5))  # fills the cache of matrices
    tracemalloc.start()
    try:
        result = function(volume, (1, 1, 1), (1.2, 1.2, 1.2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < result.nbytes + 3 * 4 * 64 * 96 * 96  # the volume in float64 has 17.7 MB


def test_peer_nnunet():
    """nnU-Net's own resampling (golden file made by make_nnunet_resampling.py)."""
    golden = np.load(GOLDEN)
    for name in ('isotropic', 'anisotropic'):
        old, new = golden[f'{name}_old'], golden[f'{name}_new']
        image = preprocess.resample_image(golden[f'{name}_image'], old, new)
        close = np.abs(image - golden[f'{name}_image_out']) < 0.01
        # nnU-Net clips slice by slice on anisotropic data, here the volume's range is the limit.
        assert close.mean() > (0.999 if name == 'isotropic' else 0.98)
        label = preprocess.resample_label(golden[f'{name}_label'], old, new)
        same = label == golden[f'{name}_label_out']
        assert same.mean() > 0.98  # they differ where no class has half of the weight
        # Or at exact ties, which rounding decides in theirs and the higher id in ours.
        theirs = golden[f'{name}_label_out'][~same]
        assert ((theirs == 0) | (label[~same] > theirs)).all()


# Target spacing and intensity.


def test_target_spacing_is_the_median():
    spacings = [(3, 0.7, 0.7), (2, 0.8, 0.8), (1, 0.9, 0.9)]
    assert preprocess.target_spacing(spacings, [(90, 512, 512)] * 3) == (2, 0.8, 0.8)


def test_target_spacing_of_thick_slices():
    spacings = [(5, 0.7, 0.7)] * 8 + [(1.5, 0.7, 0.7)] * 2
    thick = preprocess.target_spacing(spacings, [(60, 512, 512)] * 10)
    assert thick == (np.percentile([5] * 8 + [1.5] * 2, 10), 0.7, 0.7)
    long = preprocess.target_spacing(spacings, [(400, 512, 512)] * 10)
    assert long == (5, 0.7, 0.7)  # enough slices: the median stays
    fine = preprocess.target_spacing(
        [(5, 1.2, 0.7)] * 8 + [(0.5, 1.2, 0.7)] * 2, [(9, 50, 50)] * 10
    )
    assert fine == (1.2, 1.2, 0.7)  # no finer than the other axes


def test_histograms_give_numpys_statistics():
    rng = np.random.default_rng(1)
    parts = [rng.normal(40, 60, n).astype(np.int16) for n in (1000, 1, 377)]
    total = sum((preprocess.Histogram.of(p) for p in parts), preprocess.Histogram())
    values = np.concatenate(parts).astype(float)
    assert total.total == len(values)
    assert total.mean() == pytest.approx(values.mean())
    assert total.std() == pytest.approx(values.std())
    for q in (0, 0.5, 13, 50, 99.5, 100):
        assert total.percentile(q) == pytest.approx(np.percentile(values, q))


def test_histogram_of_extremes_and_nothing():
    extremes = preprocess.Histogram.of(np.array([-32768, 32767], np.int16))
    assert extremes.mean() == -0.5 and extremes.percentile(100) == 32767
    nothing = preprocess.Histogram.of(np.zeros(0, np.int16))
    assert (nothing + extremes).total == (extremes + nothing).total == 2


def test_intensity_records():
    values = np.arange(-100, 101).astype(np.int16)
    record = preprocess.intensity_of([preprocess.Histogram.of(values)] * 2)
    assert record['lower'] == [-99] * 2 and record['upper'] == [99] * 2
    assert record['shift'] == [0] * 2 and record['scale'] == pytest.approx([values.std()] * 2)
    flat = preprocess.intensity_of([preprocess.Histogram.of(np.full(9, 7, np.int16))])
    assert flat['upper'][0] > flat['lower'][0] and flat['scale'] == [1]
    window = preprocess.intensity_of_window(-175, 250, 1)
    assert (window['lower'], window['shift'], window['scale']) == ([-175], [-175], [425])
