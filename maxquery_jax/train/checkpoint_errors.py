"""What goes wrong with a checkpoint, in one line in place of a library's many."""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator

from maxquery_jax.errors import UserError

# Of the operating system, in the text of an error of TensorStore.
_SYSTEM = re.compile(
    '|'.join(
        re.escape(os.strerror(number))
        for number in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.EROFS,
            errno.EACCES,
            errno.EIO,
        )
    )
)
_ORBAX = os.path.join('orbax', 'checkpoint', '')


class DamagedError(UserError):
    """A checkpoint that cannot be read; an older one may be."""


def quiet_orbax() -> None:
    """Keeps Orbax from logging, with tracebacks and from its threads, what it raises as well."""
    logging.getLogger('absl').addFilter(_is_not_of_orbax)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return _ORBAX not in record.pathname


@contextlib.contextmanager
def as_damaged(folder: str) -> Iterator[None]:
    """Turns any failure of Orbax into one line, in place of what its threads log."""
    logger = logging.getLogger('asyncio')
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        yield
    except Exception as error:
        raise DamagedError(f'checkpoint {folder} cannot be read ({reason(error)})') from error
    finally:
        logger.setLevel(level)


def reason(error: BaseException) -> str:
    """A few words on what a library's long error means: the system's, if it is in there."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    for found in chain:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    text = ' '.join(str(chain[-1]).split()) or type(error).__name__
    system = re.search(_SYSTEM, text)
    return system[0] if system else text[:200]
