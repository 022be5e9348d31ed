"""Password hashes that PHP verifies and that sixty thousand of can be made while loading.

The site stores ``pbkdf2-sha256$<iterations>$<salt>$<hash>``, salt and hash in hexadecimal. 64 iterations are far too few to protect real
passwords: a choice of the workload, as these passwords are public and two cores are shared by everything. ``Passwords.php`` makes the same.
"""

from __future__ import annotations

import hashlib

ITERATIONS = 64


def hashed(password: str, salt: bytes) -> str:
    """The stored form of a password."""
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    return f"pbkdf2-sha256${ITERATIONS}${salt.hex()}${digest.hex()}"
