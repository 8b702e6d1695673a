"""Pictures are readable PNGs of the right size that show what they should."""

import json

import matplotlib.image
import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.report import pictures
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.progress_plot import plot_progress, read_rows

TABLE = LabelTable(('background', 'liver', 'cyst', 'fnh'), ('background', 'organ', 'tumour', 'ood'))


def _volumes(shape=(6, 40, 60)):
    """A liver box; a cyst in slice 1, an unknown tumour in slices 3 and (larger) 4."""
    truth = np.zeros(shape, np.uint8)
    truth[1:5, 5:35, 10:50] = 1
    truth[1, 10:30, 15:40] = 2
    truth[3, 10:14, 15:19] = 3
    truth[4, 24:32, 34:46] = 3
    prediction = np.where(truth == 3, 2, truth).astype(np.uint8)
    image = np.where(truth > 0, 60.0, -150.0)
    anomaly = np.where(truth == 3, -2.0, -9.0)
    return image, truth, prediction, anomaly


def test_slice_shows_unknown_tumour_then_known_then_organ_then_middle():
    _, truth, prediction, _ = _volumes()
    assert pictures.choose_slice(truth, prediction, TABLE) == 4
    known = np.where(truth == 3, 1, truth)
    assert pictures.choose_slice(known, np.minimum(prediction, 1), TABLE) == 1
    only_predicted = np.where(truth == 2, 1, known)
    assert pictures.choose_slice(only_predicted, prediction, TABLE) == 1
    assert pictures.choose_slice(None, prediction, TABLE) == 1
    only_liver = np.zeros_like(truth)
    only_liver[2, 5, 5] = 1
    assert pictures.choose_slice(only_liver, np.zeros_like(truth), TABLE) == 2
    assert pictures.choose_slice(None, np.zeros_like(truth), TABLE) == 3


def test_case_picture(tmp_path):
    image, truth, prediction, anomaly = _volumes()
    path = tmp_path / 'case.png'
    pictures.plot_case(
        image, truth, prediction, anomaly, path, table=TABLE, title='case 7', spacing_mm=(5, 1, 1)
    )
    pixels = matplotlib.image.imread(path)
    assert pixels.shape == (420, 1440, 4)
    red, green, blue = (pixels[..., i] for i in range(3))
    is_blue = (blue > red + 0.1) & (blue > green)
    is_green = (green > red + 0.1) & (green > blue + 0.1)
    truth_panel, prediction_panel = np.s_[40:360, 380:700], np.s_[40:360, 720:1040]
    assert is_blue[truth_panel].sum() > 200 and not is_green[truth_panel].any()
    assert is_green[prediction_panel].sum() > 200 and not is_blue[prediction_panel].any()
    # Upright: the tumour at high x and y is at the patient's right and anterior: top left.
    rows, columns = np.nonzero(is_blue[truth_panel])
    liver_rows, liver_columns = np.nonzero((red > green + 0.1)[truth_panel])
    assert rows.mean() < liver_rows.mean() and columns.mean() < liver_columns.mean()
    assert [p.name for p in tmp_path.iterdir()] == ['case.png']


def test_anisotropic_pixels_keep_their_shape(tmp_path):
    image, truth, prediction, anomaly = _volumes()
    heights = []
    for spacing in ((5, 1, 1), (5, 0.5, 1)):
        pictures.plot_case(
            image, truth, prediction, anomaly, tmp_path / 'x.png', table=TABLE, spacing_mm=spacing
        )
        blue = matplotlib.image.imread(tmp_path / 'x.png')[40:360, 380:700]
        is_blue = (blue[..., 2] > blue[..., 0] + 0.1) & (blue[..., 2] > blue[..., 1])
        heights.append(np.nonzero(is_blue.any(axis=1))[0].size)
    assert heights[1] == pytest.approx(heights[0] / 2, abs=3)


def test_montage_of_cases_with_and_without_truth(tmp_path):
    image, truth, prediction, anomaly = _volumes()
    slices = [
        pictures.cut_slice(image, known, prediction, anomaly, table=TABLE, title=f'case {i}')
        for i, known in enumerate((truth, None, truth))
    ]
    assert slices[0].title == 'case 0 slice 5/6'
    assert slices[0].anomaly_range == (-9.0, -2.0)
    pictures.plot_montage(slices, tmp_path / 'montage.png', table=TABLE)
    pixels = matplotlib.image.imread(tmp_path / 'montage.png')
    assert pixels.shape == (1140, 1440, 4)
    assert pixels[..., :3].std() > 0.1


def test_constant_maps_and_empty_masks_are_drawn(tmp_path):
    shape = (3, 8, 8)
    nothing = np.zeros(shape, np.uint8)
    pictures.plot_case(
        np.zeros(shape), nothing, nothing, np.full(shape, -1.0), tmp_path / 'x.png', table=TABLE
    )
    assert matplotlib.image.imread(tmp_path / 'x.png').shape == (420, 1440, 4)


def test_unwritable_place_is_the_users_fault(tmp_path):
    image, truth, prediction, anomaly = _volumes()
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        pictures.plot_case(
            image, truth, prediction, anomaly, tmp_path / 'file' / 'x.png', table=TABLE
        )


def _rows():
    rows = []
    for stage, length in (('pretrain', 40), ('finetune', 20)):
        for step in range(1, length + 1):
            row = {
                'step': step,
                'stage': stage,
                'split': 'train',
                'loss': 2 / step,
                'ce': 1 / step,
                'grad_norm': 3.0,
                'learning_rate': 1e-3 / step,
                'voxels_per_s': 2e6,
            }
            if stage == 'finetune':
                row['qd'] = 0.5
            rows.append(row)
            if step % 10 == 0:
                rows.append(
                    {
                        'step': step,
                        'stage': stage,
                        'split': 'val',
                        'dice/liver': 0.8,
                        'dice_mean': None if step == 10 else 0.6,
                    }
                )
    return rows


def test_progress_picture(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    text = ''.join(json.dumps(row) + '\n' for row in _rows())
    path.write_text(text + '{"step": 61, "sta')  # killed while writing
    assert len(read_rows(path)) == 66
    plot_progress(path, tmp_path / 'progress.png')
    first = (tmp_path / 'progress.png').read_bytes()
    assert matplotlib.image.imread(tmp_path / 'progress.png').shape == (1200, 1100, 4)
    plot_progress(path, tmp_path / 'progress.png')
    assert (tmp_path / 'progress.png').read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ['metrics.jsonl', 'progress.png']


def test_progress_of_a_run_that_just_began_or_diverged(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(
        '{"step": 1, "stage": "pretrain", "split": "train", "loss": NaN, "learning_rate": 0.01}\n'
    )
    plot_progress(path, tmp_path / 'progress.png')
    assert (tmp_path / 'progress.png').stat().st_size > 5000


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'cannot be read'),
        ('', 'no rows yet'),
        ('{"step": 1}\n{"step": 2, "stage": "a", "split": "train"}\n', 'line 1 is no metrics row'),
    ],
)
def test_progress_of_bad_files(tmp_path, text, message):
    path = tmp_path / 'metrics.jsonl'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        plot_progress(path, tmp_path / 'progress.png')
