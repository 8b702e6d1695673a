"""Draws the pictures of docs/phantom.md.

python -m maxquery_jax.data.datasets.phantom.gallery --out=docs/images
"""

import argparse
import io
import pathlib
import textwrap
from typing import Any

import numpy as np

from maxquery_jax.data.datasets.phantom import tumours
from maxquery_jax.data.datasets.phantom.case import PhantomCase, generate_case
from maxquery_jax.data.datasets.phantom.tissues import ORGAN_ID, PHASES
from maxquery_jax.files import replacing

SEED = 2024
CONTOURS = {
    'liver': 'tab:red', 'spleen': 'tab:green', 'pancreas': 'gold', 'stomach': 'tab:cyan',
    'right_kidney': 'tab:blue', 'left_kidney': 'tab:blue', 'gall_bladder': 'lime',
    'duodenum': 'magenta', 'colon': 'tab:orange', 'aorta': 'tab:pink', 'postcava': 'tab:purple',
    'portal_vein_and_splenic_vein': 'deepskyblue', 'bladder': 'yellow', 'intestine': 'sienna',
    'esophagus': 'white', 'right_adrenal_gland': 'orange', 'left_adrenal_gland': 'orange',
}  # fmt: skip
GREYS = 56  # of the saved palette, beside the contours; keeps the files small
SOFT_TISSUE = (-150, 250)
LIVER_WINDOW = (-40, 220)


def draw_anatomy(plt) -> Any:
    """Axial and coronal overviews of two healthy patients, with and without organ contours."""
    figure, axes = plt.subplots(
        3, 4, figsize=(10, 8.4), layout='constrained', height_ratios=(0.79, 0.79, 1.44)
    )
    case = generate_case(
        seed=SEED, index=1, shape_zyx=(96, 190, 240), spacing_mm=(2.5, 1.6, 1.6), region='abdomen'
    )
    for axis, z in zip(axes[:2].ravel(), (70, 48, 28, 10, -8, -26, -48, -72), strict=True):
        plane = int(np.abs(case.grid.z - z).argmin())
        _show(axis, case.image[plane, ..., 0], SOFT_TISSUE)
        _organ_contours(axis, case.organs[plane])
        axis.set_title(f'axial, z = {z} mm', fontsize=7, pad=2)
    torso = generate_case(
        seed=SEED, index=2, shape_zyx=(210, 130, 190), spacing_mm=(2.6, 2.0, 2.0), region='torso'
    )
    for axis, (y, contours) in zip(
        axes[2], ((66, False), (34, True), (4, True), (-32, False)), strict=True
    ):
        plane = int(np.abs(torso.grid.y - y).argmin())
        _show(axis, torso.image[:, plane, :, 0], SOFT_TISSUE, aspect=1.3)
        if contours:
            _organ_contours(axis, torso.organs[:, plane], aspect=1.3)
        axis.set_title(f'coronal, y = {y} mm', fontsize=7, pad=2)
    return figure


def draw_liver_tumours(plt) -> Any:
    """Known and held-out liver tumours in the venous phase."""
    other = tumours.LIVER_OOD['other']
    known = [(name, name) for name in tumours.LIVER_INLIERS]
    unknown = [('hepatoblastoma', 'hepatoblastoma'), ('fnh', 'fnh')]
    unknown += [(name, f'other: {name}') for name in other]
    return _type_grid(plt, 'liver', known, unknown, 'venous')


def draw_pancreas_tumours(plt) -> Any:
    """Known and held-out pancreatic tumours in the late arterial phase."""
    known = [(name, name) for name in tumours.PANCREAS_INLIERS]
    unknown = [('ac', 'ac'), ('dc', 'dc')]
    unknown += [(name, f'other: {name}') for name in tumours.PANCREAS_OOD['other']]
    return _type_grid(plt, 'pancreas', known, unknown, 'arterial_late')


def draw_pan_tumours(plt) -> Any:
    """One example of each of the 20 tumour labels of ZePT."""
    labels = tumours.PAN_TUMOURS
    figure, axes = plt.subplots(4, 5, figsize=(9, 7.6), layout='compressed')
    for number, (axis, (label, types)) in enumerate(zip(axes.ravel(), labels.items(), strict=True)):
        case = generate_case(
            seed=SEED, index=60 + number, shape_zyx=(136, 150, 190), spacing_mm=(4.0, 2.1, 2.1),
            region='torso', tumours=(types[0],),
        )  # fmt: skip
        window = (-1100, 300) if label.startswith('lung') else SOFT_TISSUE
        _lesion_close_up(axis, case, window, reach_mm=75)
        axis.set_title(label, fontsize=7, pad=2)
    return figure


def draw_phases(plt) -> Any:
    """The five contrast phases of four liver tumours, one field of view each."""
    names = ('hcc', 'icc', 'haemangioma', 'fnh')
    figure, axes = plt.subplots(4, 5, figsize=(9, 6.4), layout='compressed')
    for number, (row, name) in enumerate(zip(axes, names, strict=True)):
        case = generate_case(
            seed=SEED, index=(9, 8, 2, 4)[number], shape_zyx=(50, 160, 200),
            spacing_mm=(3.5, 1.7, 1.7), region='liver', phases=PHASES, tumours=(name,),
        )  # fmt: skip
        plane = int((case.lesions == 1).sum((1, 2)).argmax())
        for channel, (axis, phase) in enumerate(zip(row, PHASES, strict=True)):
            _show(axis, case.image[plane, ..., channel], LIVER_WINDOW)
            axis.contour(
                case.lesions[plane, ::-1, ::-1] > 0, [0.5], colors='tab:red', linewidths=0.5
            )
            axis.set_title(f'{name}, {phase}', fontsize=7, pad=2)
    return figure


PICTURES = {
    'phantom_anatomy': draw_anatomy,
    'phantom_liver_tumours': draw_liver_tumours,
    'phantom_pancreas_tumours': draw_pancreas_tumours,
    'phantom_pan_tumours': draw_pan_tumours,
    'phantom_phases': draw_phases,
}


def _show(axis, plane, window, aspect=1.0) -> None:
    """A plane in radiological view: the patient's right is on the left."""
    axis.imshow(plane[::-1, ::-1], cmap='gray', vmin=window[0], vmax=window[1], aspect=aspect)
    axis.set_axis_off()


def _organ_contours(axis, plane, aspect=1.0) -> None:
    for name, colour in CONTOURS.items():
        mask = plane[::-1, ::-1] == ORGAN_ID[name]
        if mask.any() and not mask.all():
            axis.contour(mask, [0.5], colors=colour, linewidths=0.6)
    axis.set_aspect(aspect)


def _type_grid(plt, region, known, unknown, phase) -> Any:
    """Two examples a type, known types above; the names of held-out types are red."""
    columns = max(len(known), len(unknown))
    figure, axes = plt.subplots(4, columns, figsize=(1.4 * columns, 6.3), layout='compressed')
    for axis in axes.ravel():
        axis.set_axis_off()
    for group, types in enumerate((known, unknown)):
        for column, (name, title) in enumerate(types):
            for example in range(2):
                axis = axes[2 * group + example, column]
                case = generate_case(
                    seed=SEED, index=100 * group + 10 * column + example, shape_zyx=(64, 170, 220),
                    spacing_mm=(3.0, 1.3, 1.3), region=region, phases=(phase,), tumours=(name,),
                )  # fmt: skip
                _lesion_close_up(axis, case, LIVER_WINDOW, reach_mm=48, contour=example == 0)
            label = '\n'.join(textwrap.wrap(title.replace('_', ' '), 22))
            colour = 'tab:red' if group else 'black'
            axes[2 * group, column].set_title(label, fontsize=6.5, pad=2, color=colour)
    return figure


def _lesion_close_up(axis, case: PhantomCase, window, reach_mm: float, contour=True) -> None:
    """The plane with most of the first lesion, cropped around it."""
    mask = case.lesions == 1
    if not mask.any():
        return
    plane = int(mask.sum((1, 2)).argmax())
    centre = np.argwhere(mask[plane]).mean(0)
    half = round(reach_mm / case.grid.spacing_mm[1])
    start = [int(np.clip(c - half, 0, max(n - 2 * half, 0))) for c, n in
             zip(centre, mask.shape[1:], strict=True)]  # fmt: skip
    box = tuple(slice(s, s + 2 * half) for s in start)
    _show(axis, case.image[plane, ..., 0][box], window)
    if contour:
        shown = case.lesions[plane][box][::-1, ::-1] > 0
        axis.contour(shown, [0.5], colors='tab:red', linewidths=0.6)


def save_picture(figure, path: pathlib.Path, dpi: int = 78) -> None:
    """Writes a figure as a PNG with a small palette, under a temporary name first."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    palette = [(level / (GREYS - 1),) * 3 for level in range(GREYS)]
    palette += [to_rgb(colour) for colour in sorted({'tab:red', *CONTOURS.values()})]
    holder = Image.new('P', (1, 1))
    holder.putpalette([round(255 * part) for colour in palette for part in colour])
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi)
    picture = Image.open(buffer).convert('RGB').quantize(palette=holder, dither=Image.Dither.NONE)
    with replacing(path) as file:
        picture.save(file, format='png', optimize=True)


def main() -> None:
    """Draws the pictures named on the command line, or all."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description='Draws the pictures of docs/phantom.md.')
    parser.add_argument('--out', default='docs/images', help='folder for the PNG files')
    parser.add_argument('--only', choices=sorted(PICTURES), help='draw one of them')
    options = parser.parse_args()
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        if options.only in (None, name):
            figure = draw(plt)
            save_picture(figure, folder / f'{name}.png')
            plt.close(figure)
            print(f'{folder / name}.png', flush=True)


if __name__ == '__main__':
    main()
