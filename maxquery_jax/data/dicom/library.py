"""pydicom: imported when a DICOM file is met, and kept from printing what the tags hold."""

import contextlib
import importlib
import logging
import types
import warnings
from collections.abc import Iterator

from maxquery_jax.errors import UserError


def require(name: str, purpose: str) -> types.ModuleType:
    """Imports a package of the extra `dicom`.

    Args:
        name: of the package, such as 'pydicom'.
        purpose: completes '... needs NAME', such as 'reading DICOM'.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = {'PIL': 'pillow'}.get(name.partition('.')[0], name.partition('.')[0])
        raise UserError(
            f"{purpose} needs {package}: install the extra 'dicom', or pip install {package}"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom: its warnings and log lines quote values, a patient's name among them."""
    config = require('pydicom.config', 'reading DICOM')
    logger = logging.getLogger('pydicom')
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
