"""What needs the packages of the extra `serve` is left out where they are not installed."""

import importlib.util

missing = any(importlib.util.find_spec(name) is None for name in ("fastapi", "httpx", "uvicorn"))
NEEDED_BY = ["test_app.py", "test_device.py", "test_questions.py", "test_served*.py"]
collect_ignore_glob = NEEDED_BY if missing else []
