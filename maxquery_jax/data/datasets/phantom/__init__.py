"""PhantomCT: procedural CT volumes with known anatomy and tumours (docs/phantom.md)."""

from maxquery_jax.data.datasets.phantom.case import PhantomCase, generate_case
from maxquery_jax.data.datasets.phantom.cohort import write_cohort
from maxquery_jax.data.datasets.phantom.spec import AnnotatedGroup, CohortSpec

__all__ = ['AnnotatedGroup', 'CohortSpec', 'PhantomCase', 'generate_case', 'write_cohort']
