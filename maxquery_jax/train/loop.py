"""The training loop: the only place of a stage with side effects."""

import dataclasses
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maxquery_jax.errors import StoppedError, UserError
from maxquery_jax.parallel import sharding
from maxquery_jax.parallel.mesh import mesh_context
from maxquery_jax.train.checkpoint import CHECKPOINT_DIR, StageCheckpoints
from maxquery_jax.train.data import TrainingData
from maxquery_jax.train.run_dir import RunDir
from maxquery_jax.train.schedule import is_due
from maxquery_jax.train.stage import Stage
from maxquery_jax.train.state import TrainState, abstract_state, create_state
from maxquery_jax.train.writers import ProgressLine
from maxquery_jax.typing import Config, PyTree

Row = dict[str, Any]  # of metrics.jsonl


@dataclasses.dataclass
class StageRun:
    """Runs one stage of an experiment to its end, from wherever it stopped.

    Attributes:
        config: the experiment.
        stage: the built stage.
        data: its stores.
        mesh: devices.
        run: run directory.
        on_log: called after rows were written (draws progress.png).
    """

    config: Config
    stage: Stage
    data: TrainingData
    mesh: Mesh
    run: RunDir
    on_log: Callable[[], None]

    def __post_init__(self) -> None:
        directory = self.run.path / CHECKPOINT_DIR / self.stage.name
        directory.mkdir(parents=True, exist_ok=True)
        self._checkpoints = StageCheckpoints(directory, self.config.checkpoint.keep)
        self._stop_signal = 0
        self._eval = jax.jit(self.stage.eval_step)
        self._case_name: Callable[[int], str] = str

    def finished_steps(self) -> int:
        """Steps of the newest checkpoint, 0 without one."""
        return max(self._checkpoints.steps(), default=0)

    def execute(self, initial_params: Callable[[], PyTree]) -> None:
        """Trains until the last step.

        Args:
            initial_params: gives host parameters; called only when there is no checkpoint.

        Raises:
            UserError: the loss is not finite, or a checkpoint cannot be read.
            StoppedError: SIGTERM came; the step it came in is saved.
        """
        with mesh_context(self.mesh):
            state, start = self._restore_or_create(initial_params)
            if start < self.stage.total_steps:
                self._train(state, start)
        self.close()

    def close(self) -> None:
        """Waits for a running checkpoint save."""
        self._checkpoints.close()

    def compile_step(self, state: TrainState) -> Callable:
        """Compiles the train step ahead of its first call and says what it needs."""
        config = self.config
        started = time.perf_counter()
        step = jax.jit(
            self.stage.train_step, donate_argnums=0, out_shardings=(self.stage.shardings, None)
        )
        batch = self.stage.abstract_batch(
            config.data.batch_size, len(self.data.manifest.channels), self.mesh
        )
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        compiled = step.lower(shapes, batch, self.stage.dropout_key).compile()
        memory = compiled.memory_analysis()
        size = ''
        if memory is not None:
            held = memory.argument_size_in_bytes / 2**30
            temporary = memory.temp_size_in_bytes / 2**30
            size = (
                f', memory per device {held + temporary:.2f} GiB '
                f'(state and batch {held:.2f}, temporary {temporary:.2f})'
            )
        seconds = time.perf_counter() - started
        print(f'{self.stage.name}: compiled in {seconds:.0f} s{size}', flush=True)
        return compiled

    def _restore_or_create(self, initial_params) -> tuple[TrainState, int]:
        steps = self._checkpoints.steps()
        stage = self.stage
        abstract = abstract_state(stage.boxed_params, stage.tx, stage.shardings)
        failure = None
        for step in reversed(steps):
            try:
                state = self._checkpoints.restore(abstract, step)
            except UserError as error:  # an older checkpoint is better than none
                failure = failure or error
                print(f'warning: {error}', flush=True)
                continue
            print(f'{stage.name}: resuming at step {step}', flush=True)
            return state, step
        if failure:
            raise failure
        return create_state(initial_params(), stage.tx, stage.shardings), 0

    def _train(self, state: TrainState, start: int) -> None:
        config, stage = self.config, self.stage
        batches = self.data.batches(
            config,
            'train',
            crop_size=stage.crop_size,
            patch_size=stage.patch_size,
            deform_rate=stage.deform_rate,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
            start_step=start,
            oversample_rate=config.data.oversample_rate,
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
        )
        self._case_name = batches.case_name
        progress = ProgressLine(
            stage.name, stage.total_steps, config.data.batch_size * int(np.prod(stage.patch_size))
        )
        previous = signal.signal(signal.SIGTERM, self._note_signal)
        try:
            self._steps(state, start, batches, progress)
        finally:
            signal.signal(signal.SIGTERM, previous)
            batches.close()
            progress.close()

    def _steps(self, state: TrainState, start: int, batches, progress: ProgressLine) -> None:
        total = self.stage.total_steps
        pending: tuple[int, Row, np.ndarray] | None = None
        train_step = self.compile_step(state)
        started = time.perf_counter()
        for step in range(start + 1, total + 1):
            waited = time.perf_counter()
            host = next(batches)
            data_wait = time.perf_counter() - waited
            batch = self.stage.augment_step(sharding.put_batch(host, self.mesh), step - 1)
            state, metrics = train_step(state, batch, self.stage.dropout_key)
            if pending:
                self._require_finite(*pending)  # one step late, so that dispatch is never blocked
            pending = (step, metrics, host['case'])
            stopping = self._stop_signal  # read once: a signal may come at any line below
            saving = is_due(step, self.config.checkpoint.every_steps, total) or stopping
            if saving or is_due(step, self.config.log.every_steps, total) or step == start + 1:
                self._require_finite(*pending)
                self._log(state, step, metrics, progress, started, data_wait)
            if saving:
                self._checkpoints.save(state, step)
            if stopping:
                self._checkpoints.close()
                raise StoppedError(
                    f'stopped by signal {stopping} after saving step {step}; the same '
                    'command continues'
                )

    def _log(self, state, step, metrics, progress, started, data_wait) -> None:
        scalars = {name: float(value) for name, value in metrics.items()}
        scalars['learning_rate'] = float(np.asarray(self.stage.schedule(step - 1)))
        rate = progress.update(step, scalars)
        row = {
            'step': step,
            'stage': self.stage.name,
            'split': 'train',
            **scalars,
            'wall_s': time.perf_counter() - started,
            'voxels_per_s': rate,
            'data_wait_s': data_wait,
        }
        self.run.append(row)
        if is_due(step, self.config.validation.every_steps, self.stage.total_steps):
            self._validate(state, step)
        self.on_log()

    def _validate(self, state: TrainState, step: int) -> None:
        if not self.data.num_cases('val') or not self.config.validation.batches:
            return
        manifest = self.data.manifest
        counts = np.zeros((manifest.num_classes, 3))
        batches = self.data.batches(
            self.config,
            'val',
            crop_size=self.stage.patch_size,
            oversample_rate=1.0,
            num_workers=0,
            prefetch=2,
        )
        try:
            for _ in range(self.config.validation.batches):
                batch = sharding.put_batch(next(batches), self.mesh)
                counts += np.asarray(self._eval(state.params, batch))
        finally:
            batches.close()
        dice = 2 * counts[:, 0] / np.maximum(counts[:, 1] + counts[:, 2], 1)
        seen = counts[:, 2] > 0
        names = [f'dice/{label}' for label in manifest.class_names]
        row: Row = {'step': step, 'stage': self.stage.name, 'split': 'val'}
        row |= {name: float(d) for name, d, s in zip(names, dice, seen, strict=True) if s}
        row['dice_mean'] = float(dice[1:][seen[1:]].mean()) if seen[1:].any() else None
        self.run.append(row)

    def _require_finite(self, step: int, metrics: Row, cases: np.ndarray) -> None:
        loss, norm = float(metrics['loss']), float(metrics['grad_norm'])
        if np.isfinite(loss) and np.isfinite(norm):
            return
        names = ', '.join(sorted({self._case_name(int(i)) for i in cases}))
        kept = self.finished_steps()
        raise UserError(
            f'{self.stage.name} step {step}: loss {loss}, gradient norm {norm}; the batch holds '
            f'{names}. Look at these cases with launch.check, lower '
            f'{self.stage.name}.optim.learning_rate, or use model.dtype=float32; the last good '
            f'checkpoint is step {kept}'
        )

    def _note_signal(self, number: int, _frame: Any) -> None:
        self._stop_signal = number
