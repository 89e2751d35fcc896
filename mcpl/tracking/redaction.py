"""Passwords and keys of URIs, taken out of whatever is shown, logged or stored."""

from __future__ import annotations

import re

HIDDEN = "***"
_USER_INFO = re.compile(r"(?<=://)[^/?#\s'\"]*@")  # up to the last @ before the path: passwords may hold one
_SECRET = re.compile(
    r"(?i)(?<=[?&;\s])([\w.-]*(?:password|passwd|secret|token|api_?key|access_?key|signature|credential)[\w-]*)"
    r"=[^&;\s'\"]+"
)


def redact(text: str) -> str:
    """The text with user and password of every URI, and secrets among its query parameters, replaced by ***.

    >>> redact("https://ann:pw@host:5000/x?token=abc")
    'https://***@host:5000/x?token=***'
    """
    return _SECRET.sub(rf"\1={HIDDEN}", _USER_INFO.sub(f"{HIDDEN}@", text))
