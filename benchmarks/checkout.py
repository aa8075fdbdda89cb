"""Makes the package of this checkout importable where none is installed. Imported first."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("prompt_tuning") is None:
    sys.path.append(str(Path(__file__).parents[1]))
