"""The PyTorch peer's environment: transformers and PEFT, pinned, apart from ours.

`python()` is its interpreter. What runs in it must import nothing of this package.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

PINNED = ("torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "safetensors==0.8.0")
_COMPLETE = "complete"


def python() -> Path:
    """The interpreter, in the user's cache; the first call makes the environment, in minutes.

    Raises:
      CalledProcessError: if pip cannot install it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(" ".join((sys.version, *PINNED)).encode()).hexdigest()[:12]
    folder = root / "prompt_tuning" / f"peer-{name}"
    interpreter = folder / "bin" / "python"
    if not (folder / _COMPLETE).exists():
        print(f"making {folder}: {', '.join(PINNED)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *PINNED], check=True)
        (folder / _COMPLETE).touch()
    return interpreter
