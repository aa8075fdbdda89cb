"""Who may use the server, and who may change its tasks."""

import dataclasses
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from prompt_tuning.errors import UserError
from prompt_tuning.server.errors import Refused

Role = Literal["use", "admin"]
_HASH = re.compile(r"[0-9a-f]{64}")
LOCAL = ("127.0.0.1", "localhost", "::1")


def hash_of(key: str) -> str:
    """SHA-256 of a key, as a file of keys holds it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Keys:
    """Hashes of keys by role; an admin's key may be used for everything.

    Attributes:
      use, admin: SHA-256 of each key, in hexadecimal digits.
      is_open: Whether everyone may use the server; then nobody may change it unless `open_updates`.
      open_updates: Whether everyone may change the tasks too.
    """

    use: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()
    is_open: bool = False
    open_updates: bool = False

    @classmethod
    def read(cls, path: str) -> "Keys":
        """Reads a JSON file {"use": [HASH, ...], "admin": [HASH, ...]}.

        Raises:
          UserError: if it is something else.
        """
        try:
            content = json.loads(Path(path).expanduser().read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"KEYS_FILE = {path!r}: cannot be read ({error})") from error
        roles = ("use", "admin")
        good = isinstance(content, dict) and content.keys() <= set(roles)
        hashes = {role: content.get(role, []) for role in roles} if good else {}
        if (
            not good
            or not any(hashes.values())
            or not all(
                isinstance(each, list)
                and all(isinstance(text, str) and _HASH.fullmatch(text) for text in each)
                for each in hashes.values()
            )
        ):
            raise UserError(
                f"KEYS_FILE = {path!r}: must be a JSON object with lists of SHA-256 hashes, 64 "
                'hexadecimal digits each: {"use": [...], "admin": [...]}'
            )
        return cls(tuple(hashes["use"]), tuple(hashes["admin"]))

    def without_updates(self) -> "Keys":
        """These keys, all of them for use alone."""
        return Keys((*self.use, *self.admin))

    def check(self, headers: Mapping[str, str], role: Role) -> None:
        """Checks the key of a request.

        Raises:
          Refused: 401 without a known key, 403 with one that is for less.
        """
        if self.is_open:
            if role == "admin" and not self.open_updates:
                raise Refused(
                    403, "tasks cannot be changed: start with ALLOW_UPDATES = True", "no_updates"
                )
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = hash_of(key.strip()) if scheme.lower() == "bearer" else ""
        roles = [name for name in ("use", "admin") if self._has(name, given)]
        if not roles:
            raise Refused(401, "give a key: Authorization: Bearer KEY", "invalid_api_key")
        if role == "admin" and "admin" not in roles:
            raise Refused(403, "this key may not change tasks", "not_an_admin")

    def _has(self, role: str, given: str) -> bool:
        return any(hmac.compare_digest(given, each) for each in getattr(self, role))
