"""Users of this machine by name, or by number where there is no entry for one, as in containers."""

from __future__ import annotations

import pwd


def user_of(uid: int) -> str:
    """The user's name, else its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
