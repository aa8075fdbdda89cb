"""Whether there is a network, asked before clients that try again for minutes."""

import socket
import urllib.request

_STORAGE_HOST = ("storage.googleapis.com", 443)


def no_storage() -> str:
    """Why Google Cloud Storage cannot be reached; "" if it answers, or a proxy is set."""
    if urllib.request.getproxies().get("https"):
        return ""  # then only a client that knows the proxy can tell
    try:
        socket.create_connection(_STORAGE_HOST, timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
