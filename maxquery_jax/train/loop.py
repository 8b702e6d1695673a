"""The training loop: the only place of a stage with side effects."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from maxquery_jax.errors import StoppedError, UserError
from maxquery_jax.files import explain
from maxquery_jax.parallel import processes, sharding
from maxquery_jax.parallel.mesh import mesh_context
from maxquery_jax.train.checkpoint import CHECKPOINT_DIR, StageCheckpoints, best_step
from maxquery_jax.train.data import TrainingData
from maxquery_jax.train.goodput import Goodput
from maxquery_jax.train.notices import StopNotice
from maxquery_jax.train.run_dir import CONFIG, RunDir
from maxquery_jax.train.schedule import is_due
from maxquery_jax.train.stage import Stage
from maxquery_jax.train.state import TrainState
from maxquery_jax.train.validation import Row, Validator
from maxquery_jax.train.writers import ProgressLine
from maxquery_jax.typing import Config, PyTree

_Pending = tuple[int, Row, np.ndarray]  # step, metrics that may not be computed yet, cases


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
        goodput: where the time goes.
    """

    config: Config
    stage: Stage
    data: TrainingData
    mesh: Mesh
    run: RunDir
    on_log: Callable[[], None]
    goodput: Goodput = dataclasses.field(default_factory=Goodput)

    def __post_init__(self) -> None:
        directory = self.run.path / CHECKPOINT_DIR / self.stage.name
        self._checkpoints = StageCheckpoints(directory, self.config.checkpoint.keep)
        self._validator = Validator(self.config, self.stage, self.data, self.mesh)
        self._has_config = processes.is_first() and (self.run.path / CONFIG).is_file()
        self._best: float | None = None  # value of the best checkpoint; of process 0
        self._step = self._saved = 0  # steps dispatched to the device; of the last save
        self._notice = StopNotice()
        self._case_name: Callable[[int], str] = str

    def finished_steps(self) -> int:
        """Steps of the newest checkpoint, 0 without one."""
        return processes.decide(max(self._checkpoints.steps(), default=0))

    def is_finished(self) -> bool:
        """Whether the last step is saved, and validated if it is to be."""
        last = self.stage.total_steps
        return self.finished_steps() >= last and not self._lacks_validation(last)

    def execute(self, initial_params: Callable[[], PyTree]) -> None:
        """Trains until the last step.

        Args:
            initial_params: gives host parameters; called only when there is no checkpoint.

        Raises:
            UserError: the loss is not finite, a checkpoint cannot be read, or data or disk fail;
                names the step that the same command would continue from.
            StoppedError: a signal or a notice asked for it; the step it came in is saved.
        """
        with mesh_context(self.mesh):
            state, start = self._restore_or_create(initial_params)
            self._step = self._saved = start
            if start < self.stage.total_steps:
                self._train(state, start)
            else:
                with self._explaining():
                    self._recall_best(state, start)
                    self._settle()

    def close(self) -> None:
        """Waits for a running checkpoint save; UserError if it failed."""
        with self.goodput.span('checkpoint'):
            self._checkpoints.close()

    def compile_step(self, state: TrainState) -> Callable:
        """Compiles the train step ahead of its first call and says what it needs."""
        config = self.config
        started = time.perf_counter()
        batch = self.stage.abstract_batch(
            config.data.batch_size, len(self.data.manifest.channels), self.mesh
        )
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        step = self.stage.jit_step()
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
        processes.say(f'{self.stage.name}: compiled in {seconds:.0f} s{size}')
        return compiled

    def _restore_or_create(self, initial_params) -> tuple[TrainState, int]:
        stage = self.stage
        self._checkpoints.clean()
        found = self._checkpoints.restore_newest(stage.layout.abstract_saved)
        if found is None:
            return stage.layout.create(initial_params()), 0
        saved, start = found
        processes.say(f'{stage.name}: resuming at step {start}')
        # Again: it may be older than the newest that is there, which is damaged then.
        self.run.drop_rows_after(tuple(self.config.stages), stage.name, start)
        return stage.layout.from_saved(saved), start

    def _train(self, state: TrainState, start: int) -> None:
        config, stage = self.config, self.stage
        with self._explaining():
            batches = self.data.batches(
                config,
                'train',
                crop_size=stage.crop_size,
                patch_size=stage.patch_size,
                deform_rate=stage.deform_rate,
                rows=sharding.process_rows(self.mesh, config.data.batch_size),
                start_step=start,
                oversample_rate=config.data.oversample_rate,
                num_workers=config.data.num_workers,
                prefetch=config.data.prefetch,
            )
        self._case_name = batches.case_name
        progress = ProgressLine(
            stage.name, stage.total_steps, config.data.batch_size * int(np.prod(stage.patch_size))
        )
        try:
            with self._notice, self._explaining():
                self._steps(state, start, batches, progress)
                self._settle()
        finally:
            batches.close()
            progress.close()

    def _steps(self, state: TrainState, start: int, batches, progress: ProgressLine) -> None:
        total, every = self.stage.total_steps, self.config
        pending: _Pending | None = None
        with self.goodput.span('compile'):
            train_step = self.compile_step(state)
        started = time.perf_counter()
        with self.goodput.span('step'):
            self.goodput.begin(self.stage.name, start)
            self._recall_best(state, start)
            for step in range(start + 1, total + 1):
                waited = time.perf_counter()
                with self._saving_on_failure(state, pending), self.goodput.span('data_wait'):
                    host = next(batches)
                data_wait = time.perf_counter() - waited
                batch = self._augmented(host, step, is_first=step == start + 1)
                state, metrics = train_step(state, batch, self.stage.dropout_key)
                if pending:
                    self._require_finite(*pending)  # one step late: dispatch is never blocked
                pending, self._step = (step, metrics, host['case']), step
                # Read once: a signal may come at any line below.
                stopping = processes.should_stop(bool(self._notice.reason))
                saving = is_due(step, every.checkpoint.every_steps, total) or stopping
                # A stop leaves little time: its step is validated after the restart.
                validating = self._validator.is_due(step) and not stopping
                logging = is_due(step, every.log.every_steps, total) or step == start + 1
                if saving or validating or logging:
                    self._require_finite(*pending)
                    self.goodput.finished_step()
                if saving or logging:
                    self._log(step, metrics, progress, started, data_wait)
                if saving:  # before validation, which reads data and may fail
                    self._save(state, step)
                if validating:
                    self._validate(state, step, pending)
                self._checkpoints.check()
                self.goodput.beat()
                if stopping:
                    raise self._stopped(step)

    @contextlib.contextmanager
    def _saving_on_failure(self, state: TrainState, pending: _Pending | None) -> Iterator[None]:
        """Where data are read: the work since the last save need not go with them."""
        try:
            yield
        except (UserError, OSError):
            # Of several processes, one that cannot read its rows is alone, and cannot save alone.
            if pending and self._saved < self._step and jax.process_count() == 1:
                self._require_finite(*pending)
                self._save(state, self._step)
            raise

    def _augmented(self, host: dict[str, np.ndarray], step: int, *, is_first: bool) -> PyTree:
        with self.goodput.span('compile' if is_first else 'step'):
            return self.stage.augment_step(sharding.put_batch(host, self.mesh), step - 1)

    def _save(self, state: TrainState, step: int, *, is_best: bool = False) -> None:
        self._require_run()
        self.goodput.mark(self.stage.name, step)
        with self.goodput.span('checkpoint'):
            saved = self.stage.layout.to_saved(state)
            self._checkpoints.save(saved, step, is_best=is_best)
        self._saved = step

    def _require_run(self) -> None:
        """A save would make a directory that vanished anew, without what it held."""
        if self._is_gone():
            raise UserError(f'{self.run.path} is gone; put it back or mend its mount')

    def _is_gone(self) -> bool:
        return not self.run.path.is_dir() or (
            self._has_config and not (self.run.path / CONFIG).is_file()
        )

    def _settle(self) -> None:
        """Waits for a running save and leaves only the checkpoints that are to stay."""
        self.close()
        self._checkpoints.remove_old()

    def _stopped(self, step: int) -> StoppedError:
        self._settle()
        reason = self._notice.reason
        why = f'by {reason}' if reason else 'because another process was'
        return StoppedError(f'stopped {why} after saving step {step}; the same command continues')

    def _log(self, step: int, metrics: Row, progress, started: float, data_wait: float) -> None:
        scalars = {name: float(value) for name, value in metrics.items()}
        scalars['learning_rate'] = float(np.asarray(self.stage.schedule(step - 1)))
        rate = progress.update(step, scalars)
        self._require_run()
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
        with self.goodput.span('other'):
            self.on_log()

    def _validate(self, state: TrainState, step: int, pending: _Pending | None = None) -> None:
        """Writes a validation row, and keeps the state if it is the best until now."""
        with self._saving_on_failure(state, pending), self.goodput.span('evaluation'):
            row = self._validator.run(state.params, step)
        self.run.append(row)
        value = row.get(self.config.checkpoint.best)
        is_best = value is not None and (self._best is None or value > self._best)
        if not processes.decide(int(is_best)):
            return
        self._best = value
        if self._saved == step:
            self._checkpoints.best = step
        else:
            self._save(state, step, is_best=True)

    def _recall_best(self, state: TrainState, start: int) -> None:
        """Finds the best checkpoint of earlier starts, and validates a step that a stop saved."""
        found = best_step(
            self.run.rows() if processes.is_first() else (),
            self.stage.name,
            self.config.checkpoint.best,
            self._checkpoints.steps(),
        )
        if found:
            self._checkpoints.best, self._best = found
        if start and self._lacks_validation(start):
            self._validate(state, start)

    def _lacks_validation(self, step: int) -> bool:
        """Whether a saved step is due to be validated and was not."""
        if not self._validator.is_due(step):
            return False
        key = (self.stage.name, 'val', step)
        rows = self.run.rows() if processes.is_first() else ()
        is_done = any((row['stage'], row['split'], row['step']) == key for row in rows)
        return not processes.decide(int(is_done))

    def _require_finite(self, step: int, metrics: Row, cases: np.ndarray) -> None:
        loss, norm = float(metrics['loss']), float(metrics['grad_norm'])
        if np.isfinite(loss) and np.isfinite(norm):
            return
        names = ', '.join(sorted({self._case_name(int(i)) for i in cases}))
        raise _NotFiniteError(
            f'{self.stage.name} step {step}: loss {loss}, gradient norm {norm}; the batch holds '
            f'{names}. Look at these cases with launch.check, lower '
            f'{self.stage.name}.optim.learning_rate, or use model.dtype=float32; '
            f'{self._last_good()}'
        )

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Ends data and disk errors with where the training stands and what continues it."""
        try:
            yield
        except (StoppedError, _NotFiniteError):
            raise
        except (UserError, OSError) as error:
            raise UserError(
                f'{_cause(error, self.run.path)}; {self.stage.name} had come to step {self._step}, '
                f'{self._last_good()}'
            ) from error

    def _last_good(self) -> str:
        """What a new start would find; a running save may still become it."""
        with contextlib.suppress(UserError):
            self.close()
        steps = self._checkpoints.steps()
        if self._is_gone():
            return 'and the same command continues from its newest checkpoint when it is back'
        if not steps:
            return 'and there is no checkpoint yet: the same command begins again'
        return (
            f'the last good checkpoint is step {steps[-1]} in {self._checkpoints.directory}: the '
            'same command continues from there'
        )


class _NotFiniteError(UserError):
    """The loss is not finite: starting again ends here again."""


def _cause(error: UserError | OSError, folder: pathlib.Path) -> str:
    if isinstance(error, UserError):
        return str(error)
    # A write that fails does not know its file.
    named = OSError(error.errno, error.strerror, error.filename or str(folder))
    return str(explain(named) or f'{named.filename}: {error.strerror or error}')
