"""Places the weights of a published text encoder in a tree of our parameters, name by name."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from maxquery_jax.errors import UserError
from maxquery_jax.text import tensorfile

WEIGHTS_FILE = 'model.safetensors'
_PICKLES = ('pytorch_model.bin', 'model.bin', 'model.pt', 'model.pth')
_SHOWN = 6  # names quoted in a message


@dataclasses.dataclass(frozen=True)
class Target:
    """Where one published tensor goes.

    Attributes:
        path: of our parameter.
        shape: of the published tensor.
        transpose: whether it is [out, in] there and [in, out] here.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    transpose: bool = False


def dense_targets(
    source: str, path: tuple[str, ...], sizes: tuple[int, int], use_bias: bool = True
) -> dict[str, Target]:
    """Targets of a linear layer of `sizes` (in, out) that is published under `source`."""
    targets = {f'{source}.weight': Target((*path, 'kernel'), sizes[::-1], transpose=True)}
    if use_bias:
        targets[f'{source}.bias'] = Target((*path, 'bias'), sizes[1:])
    return targets


def norm_targets(source: str, path: tuple[str, ...], features: int) -> dict[str, Target]:
    """Targets of a layer norm that is published under `source`."""
    return {
        f'{source}.weight': Target((*path, 'scale'), (features,)),
        f'{source}.bias': Target((*path, 'bias'), (features,)),
    }


def read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of an encoder folder.

    Raises:
        UserError: there is no sound `model.safetensors`; a pickle is refused, with the way out.
    """
    path = folder / WEIGHTS_FILE
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if not path.exists() and pickles:
        raise UserError(
            f'{folder / pickles[0]} is a pickle, which can run code and is not read; convert it '
            'once where transformers and torch are installed: '
            f"AutoModel.from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    if not path.exists() and (folder / f'{WEIGHTS_FILE}.index.json').exists():
        raise UserError(f'{folder}: weights in several files are not read; save them as one file')
    fix = 'name a folder with config.json and model.safetensors'
    return tensorfile.read_tensors(path, fix=fix)[0]


def normalise_names(
    tensors: Mapping[str, np.ndarray], prefix: str, unused: Iterable[str]
) -> dict[str, np.ndarray]:
    """Drops `prefix` and what is `unused` (regular expressions), and renames gamma and beta."""
    patterns = [re.compile(pattern) for pattern in unused]
    result = {}
    for name, array in tensors.items():
        name = name.removeprefix(prefix)
        name = re.sub(r'\.gamma$', '.weight', re.sub(r'\.beta$', '.bias', name))
        if not any(pattern.match(name) for pattern in patterns):
            result[name] = array
    return result


def place(
    tensors: Mapping[str, np.ndarray], targets: Mapping[str, Target], folder: pathlib.Path
) -> dict[str, Any]:
    """The nested parameters {'params': ...}, float32.

    Raises:
        UserError: names that are missing or unknown, shapes that differ, or values that are not
            finite.
    """
    where = folder / WEIGHTS_FILE
    missing, unknown = (
        sorted(targets.keys() - tensors.keys()),
        sorted(tensors.keys() - targets.keys()),
    )
    if missing or unknown:
        parts = [
            f'{len(names)} {what}: {", ".join(names[:_SHOWN])}{", ..." * (len(names) > _SHOWN)}'
            for what, names in (('missing', missing), ('unknown', unknown))
            if names
        ]
        raise UserError(
            f'{where} does not fit its config.json ({"; ".join(parts)}); is it another '
            'architecture or a task head of its own?'
        )
    params: dict[str, Any] = {}
    for name, target in targets.items():
        array = tensors[name]
        if array.shape != target.shape:
            raise UserError(
                f'{where}: {name} is {list(array.shape)} where config.json says '
                f'{list(target.shape)}; the two files belong to different models'
            )
        array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            raise UserError(f'{where}: {name} is not finite; download the file again')
        node = params
        for key in target.path[:-1]:
            node = node.setdefault(key, {})
        node[target.path[-1]] = array.T if target.transpose else array
    return {'params': params}
