"""Restarts a benchmark with huge pages, as commands do. Imported first, before JAX.

Nothing happens when something other than a script of this folder imports it, such as a test.
"""

import checkout

import sys
from pathlib import Path

from prompt_tuning.runtime import huge_pages

if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:
    huge_pages.restart()
