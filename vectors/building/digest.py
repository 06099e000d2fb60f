"""Digests, which name the files of a build by what they depend on."""

import hashlib
import json
from typing import Any


def digest(content: Any, length: int = 12) -> str:
    """Return the first hexadecimal digits of the SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]
