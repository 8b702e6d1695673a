"""The runs of a study: variant x seed x fold, which stages each trains and which it takes over."""

import copy
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.parallel.parts import Part
from maxquery_jax.study.spec import Study
from maxquery_jax.typing import Config

MakeConfig = Callable[[str], Config]

NO_FOLD = -1

# What may differ between two variants that share a stage.
_NOT_TRAINED_ON = (
    'name',
    'variant',
    'stages',
    'log',
    'checkpoint',
    'validation',
    'mesh',
    'model.conv_form',
    'model.decoder',  # see _own_parts
    'model.zept',
    'model.backbone.dropout_passes',
    'data.num_workers',
    'data.num_threads',
    'data.prefetch',
)

# Fields of model.zept that stage I reads; the others are about tumours.
_ZEPT_STAGE1 = (
    'organs',
    'output_strides',
    'query_dim',
    'num_heads',
    'mlp_ratio',
    'mask_prior',
    'ofg',
    'grouping',
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        variant: name in the study.
        seed: of the run.
        fold: that validates, `NO_FOLD` without cross-validation.
        path: run directory.
        stages: name to optimiser steps of the stages that it trains itself; none where it only
            predicts otherwise than the run it takes them from.
        taken: (run directory, stage, optimiser steps) of the stages it takes over, in order.
        config: of the whole variant; `run_config` makes the run's own of it.
    """

    variant: str
    seed: int
    fold: int
    path: pathlib.Path
    stages: Mapping[str, int]
    taken: tuple[tuple[pathlib.Path, str, int], ...]
    config: Config = dataclasses.field(repr=False, compare=False)

    @property
    def group(self) -> tuple[int, int]:
        """Runs of one group may share stages, so they stay on one host."""
        return self.seed, self.fold

    @property
    def model_path(self) -> pathlib.Path:
        """Run directory of the model that it predicts with."""
        return self.path if self.stages else self.taken[-1][0]

    @property
    def cohort(self) -> str:
        """Hash of what its data are; runs with the same one see the same cases."""
        return cohort_of(self.config)

    @property
    def title(self) -> str:
        """For messages."""
        fold = '' if self.fold == NO_FOLD else f' fold {self.fold}'
        return f'{self.variant} seed {self.seed}{fold}'

    @property
    def is_ready(self) -> bool:
        """Whether the stage that it starts from is trained to its end."""
        if not self.taken:
            return True
        path, stage, steps = self.taken[-1]
        return (path / 'checkpoints' / stage / str(steps)).is_dir()


def plan(study: Study, make_config: MakeConfig, workdir: str | pathlib.Path) -> list[Run]:
    """All runs of a study; a run stands behind those that it takes stages from.

    Args:
        study: the study.
        make_config: gives the unlocked config of the text after the colon of `--config`.
        workdir: folder of the study.

    Raises:
        UserError: a variant that cannot be built, or cannot share what it says it shares.
    """
    workdir = pathlib.Path(workdir)
    order = _sort(study)
    configs = {name: _resolve(study, make_config, name) for name in order}
    counts = {name: _count_shared(study, configs, name) for name in order}
    folds = range(study.folds) if study.folds else (NO_FOLD,)
    runs = []
    for seed in study.seeds:
        for fold in folds:
            for name in order:
                stages = tuple(configs[name].stages)
                taken = tuple(
                    (
                        run_path(workdir, _owner(study, counts, name, index), seed, fold),
                        stages[index],
                        _num_steps(configs[name], stages[index]),
                    )
                    for index in range(counts[name])
                )
                own = {s: _num_steps(configs[name], s) for s in stages[counts[name] :]}
                path = run_path(workdir, name, seed, fold)
                runs.append(Run(name, seed, fold, path, own, taken, configs[name]))
    return runs


def run_path(workdir: pathlib.Path, variant: str, seed: int, fold: int = NO_FOLD) -> pathlib.Path:
    """Directory of a run."""
    return workdir / variant / (f'seed{seed}' if fold == NO_FOLD else f'seed{seed}_fold{fold}')


def cohort_of(config: Config) -> str:
    """See `Run.cohort`."""
    data = config.data
    content = [data.store, list(data.stores), data.phantom.to_dict()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def take_part(runs: list[Run], part: str) -> list[Run]:
    """The runs of part 'i/n' (1-based); runs of one seed and fold stay together.

    Raises:
        UserError: `part` is not of that form.
    """
    own = Part.parse(part)
    groups = list(dict.fromkeys(run.group for run in runs))[own.index - 1 :: own.count]
    return [run for run in runs if run.group in groups]


def run_config(run: Run, study: Study, store: str = '') -> Config:
    """The locked config of a run: its own stages, its seed and fold, and where it starts.

    Args:
        run: of the plan.
        study: the study.
        store: of the study's cohort; '' leaves the config's own data.
    """
    config = copy.deepcopy(run.config)
    config.seed = run.seed
    if run.fold != NO_FOLD:
        config.data.fold, config.data.num_folds = run.fold, study.folds
    if store and not config.data.store and not config.data.stores:
        config.data.store = store
    config.stages = tuple(run.stages)
    if run.taken and run.stages:
        path, stage, _ = run.taken[-1]
        config[config.stages[0]].init_from = f'{path}:{stage}'
    return config.lock()


def _resolve(study: Study, make_config: MakeConfig, name: str) -> Config:
    """Config of a variant with all its stages."""
    variant = study.variants[name]
    words = ','.join(text for text in (study.base, variant.words) if text)
    try:
        config = make_config(words)
        for field, value in variant.overrides.items():
            _override(config, field, value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'variant {name} of study {study.name}: {reason}') from error
    return config


def _override(config: Config, field: str, value: Any) -> None:
    """Sets a dotted field that is there."""
    *path, name = field.split('.')
    for part in path:
        config = config[part]
    if name not in config:
        raise KeyError(f'the config has no field {field!r}')
    config[name] = value


def _sort(study: Study) -> list[str]:
    """Variants in the study's order, but behind the one they share from."""
    found: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f'study {study.name}: {" shares from ".join((*path, name))}, a circle')
        if name in found:
            return
        if study.variants[name].share:
            visit(study.variants[name].share, (*path, name))
        found.append(name)

    for name in study.variants:
        visit(name, ())
    return found


def _count_shared(study: Study, configs: Mapping[str, Config], name: str) -> int:
    """Number of first stages that a variant has in common with the one it shares from.

    Raises:
        UserError: none or all are, or what the common stages read differs.
    """
    source = study.variants[name].share
    if not source:
        return 0
    ours, theirs = configs[name], configs[source]
    count = 0
    for own, other in zip(ours.stages, theirs.stages, strict=False):
        if own != other or not _is_same_stage(ours, theirs, own):
            break
        count += 1
    where = f'study {study.name}: {name} shares from {source}'
    if not count:
        raise UserError(f'{where}, but their first stages differ; share from another or from none')
    variant = study.variants[name]
    is_other_prediction = variant.predict != study.variants[source].predict
    if count == len(ours.stages) and not (is_other_prediction and count == len(theirs.stages)):
        raise UserError(
            f'{where} and has no stage of its own; let {source} share from {name} instead'
        )
    differing = _differences(ours, theirs)
    if differing:
        shared = ', '.join(ours.stages[:count])
        raise UserError(f'{where}, but {differing[0]} differs, on which {shared} depends')
    return count


def _is_same_stage(ours: Config, theirs: Config, stage: str) -> bool:
    """Whether two variants mean the same by a stage and by what it alone reads of the model."""
    is_same = ours[stage].to_dict() == theirs[stage].to_dict()
    return is_same and _own_parts(ours, stage) == _own_parts(theirs, stage)


def _own_parts(config: Config, stage: str) -> dict[str, Any]:
    """Fields of the model beside the backbone that a stage reads."""
    objective, model = config[stage].objective, config.model
    if objective == 'segmentation':
        return {}
    if objective == 'zept_stage1':
        return {name: model.zept[name] for name in _ZEPT_STAGE1}
    if objective in ('zept_stage2', 'universal'):
        return model.zept.to_dict()
    return model.decoder.to_dict()


def _differences(ours: Config, theirs: Config) -> list[str]:
    """Fields that every stage reads and that differ."""
    ignored = [*_NOT_TRAINED_ON, *(key for c in (ours, theirs) for key in c if _is_stage(c, key))]
    before, now = _flatten(theirs.to_dict()), _flatten(ours.to_dict())
    return [
        key
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
        and not any(key == name or key.startswith(f'{name}.') for name in ignored)
    ]


def _is_stage(config: Config, key: str) -> bool:
    return hasattr(config[key], 'objective')


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f'{prefix}.{key}' if prefix else key
        flat |= _flatten(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def _owner(study: Study, counts: Mapping[str, int], name: str, index: int) -> str:
    """The variant that trains stage number `index` of a variant."""
    while index < counts[name]:
        name = study.variants[name].share
    return name


def _num_steps(config: Config, stage: str) -> int:
    return config[stage].epochs * config[stage].steps_per_epoch
