"""Runs a verb: flags, one-line errors, exit codes 0, 1 and 2."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from maxquery_jax import files
from maxquery_jax.errors import UserError

_DEBUG = flags.DEFINE_bool(
    'debug', False, "Show the traceback of errors that are the input's fault."
)

EXIT_USER = 2


def run(main: Callable[[], None]) -> None:
    """Parses flags, calls `main` and turns failures into exit codes.

    Exit 0 on success; 2 with one line on stderr when the user's input or data is at fault
    (`UserError`, a flag that does not parse, an unknown config field, no permission, a full
    disk); 1 with a traceback for a bug of ours; 130 when interrupted.

    Args:
        main: the verb; reads its own flags.
    """
    logging.set_verbosity(logging.WARNING)
    app.run(lambda _: _guard(main), flags_parser=_parse_flags)


def experiment(config: Any) -> Any:
    """The value of a `--config` flag, checked.

    Raises:
        UserError: the flag is missing, or the file could not be loaded.
    """
    if config is None:
        raise UserError('name an experiment with --config, e.g. --config=configs/maxquery.py:demo')
    try:
        config.name  # noqa: B018 - ml_collections reports a failed load at the first access
    except OSError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f'--config={lines[2]} cannot be loaded: {lines[-1]}') from error
    return config


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError, ImportError, OSError,
            UserError) as error:  # fmt: skip
        _fail(error)
    if len(rest) > 1:
        _fail(
            UserError(
                f'unexpected argument {rest[1]!r}; options look like --name=value, see --help'
            )
        )
    return rest


def _guard(main: Callable[[], None]) -> None:
    try:
        main()
    except UserError as error:
        if _DEBUG.value:
            raise
        _fail(error)
    except OSError as error:
        user_error = files.explain(error)
        if user_error is None or _DEBUG.value:
            raise
        _fail(user_error)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        os._exit(130)  # worker threads of the input pipeline must not delay the exit


def _fail(error: BaseException) -> None:
    while error.args and isinstance(error.args[0], KeyError):  # ml_collections wraps it
        error = error.args[0]
    missing = f'the config has no such field: {error.args[0]}' if error.args else ''
    text = missing if isinstance(error, KeyError) else str(error)
    if 'Traceback' in text:  # ml_collections quotes the whole trace of a config that fails
        lines = [line for line in text.splitlines() if line.strip()]
        text = f'{lines[0].split(" Error whilst")[0].rstrip(":")}: {lines[-1]}'
    message = ' '.join(text.split()) or type(error).__name__
    print(f'error: {message}', file=sys.stderr)
    sys.stderr.flush()
    sys.exit(EXIT_USER)
