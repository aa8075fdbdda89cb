"""Checks for a network before clients that would retry for minutes."""

import socket
import urllib.request

_STORAGE_HOST = ("storage.googleapis.com", 443)


def no_storage() -> str:
    """Why Google Cloud Storage cannot be reached; "" if it answers or a proxy is set."""
    if urllib.request.getproxies().get("https"):
        return ""  # only a client that uses the proxy can find out
    try:
        socket.create_connection(_STORAGE_HOST, timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
