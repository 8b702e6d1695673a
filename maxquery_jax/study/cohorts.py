"""The data of a study's runs: one store for all, or one per cohort that variants describe."""

import dataclasses
import pathlib

from maxquery_jax.errors import UserError
from maxquery_jax.study.plan import Run, cohort_of
from maxquery_jax.train.data import open_data
from maxquery_jax.typing import Config

COHORTS = 'cohorts'


@dataclasses.dataclass(frozen=True)
class Cohorts:
    """The data of a study: its base's, and those of variants that describe a cohort of their own.

    Attributes:
        workdir: of the study; the base's cohort is generated there, others below `COHORTS`.
        store: that was named in place of the base's cohort; '' for none.
        base: `Run.cohort` of the base.
    """

    workdir: pathlib.Path
    store: str
    base: str

    def store_of(self, run: Run) -> str:
        """Path of the store, whose cohort is generated if need be; '' where the run names its own.

        Raises:
            UserError: it describes another cohort than the base, but a store was named.
        """
        data = run.config.data
        if data.store or data.stores:
            return ''
        if self.store:
            if run.cohort != self.base:
                raise UserError(
                    f'{run.variant} changes data.phantom, which --store={self.store} replaces; '
                    'run it without --store'
                )
            return self.store
        return self.generate(run.config)

    def generate(self, config: Config) -> str:
        """The store of the cohort that a config describes, '' if it describes none."""
        if not config.data.phantom or config.data.store or config.data.stores:
            return ''
        key = cohort_of(config)
        folder = self.workdir if key == self.base else self.workdir / COHORTS / key
        return str(open_data(config, folder).stores[0].location)


def open_cohorts(base: Config, workdir: pathlib.Path, store: str) -> Cohorts:
    """Generates the cohort that the study's base describes, unless a store takes its place."""
    cohorts = Cohorts(workdir, store, cohort_of(base))
    if not store:
        cohorts.generate(base)
    return cohorts
