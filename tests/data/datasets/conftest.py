"""Lets these tests use the helpers of their neighbours."""

import pathlib
import sys

DATA = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(path) for path in (DATA, DATA / 'dicom') if str(path) not in sys.path]
