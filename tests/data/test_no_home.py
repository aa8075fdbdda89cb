"""A user without a home folder, as in some containers: one line that says what to set."""

import os
import runpy

import pytest

from prompt_tuning.data import quiet
from prompt_tuning.errors import UserError


def test_no_home(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match=r"^HOME is not set.*: set HOME to any folder$"):
        runpy.run_path(quiet.__file__)
