"""`import helpers` in a notebook means the helpers beside it, whatever checkout the environment was installed from."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
del sys.modules["helpers"]  # this file, in whose place the package comes
importlib.import_module("helpers")
