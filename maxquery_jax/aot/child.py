"""Runs a compilation in a process of its own: compilers for absent hardware can crash."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from maxquery_jax.aot.targets import Target, compiler_environment
from maxquery_jax.errors import UserError


def run_child(arguments: Sequence[str], target: Target) -> int:
    """Runs `launch.compile` with the environment that the target's compiler needs.

    Args:
        arguments: of the command line.
        target: the hardware.

    Returns:
        The exit code.

    Raises:
        UserError: the compiler crashed.
    """
    environment = os.environ | compiler_environment(target)
    command = [sys.executable, '-m', 'launch.compile', *arguments]
    code = subprocess.run(command, env=environment, check=False).returncode
    if code < 0:
        raise UserError(
            f'the compiler for {target.name} crashed ({signal.Signals(-code).name}); try '
            '--effort=fast, a smaller slice of the same chips, or another version of its package'
        )
    return code
