"""What needs the packages of the extra `serve` is left out where they are not installed."""

import importlib.util

missing = any(importlib.util.find_spec(name) is None for name in ("fastapi", "httpx", "uvicorn"))
collect_ignore_glob = ["test_app.py", "test_device.py", "test_served*.py"] if missing else []
