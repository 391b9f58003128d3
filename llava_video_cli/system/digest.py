"""A short name of a content."""

from __future__ import annotations


def fingerprint(content: bytes, key: bytes = b"") -> str:
    """Return 32 hexadecimal digits that two contents do not share; `key`, of 64 bytes at most, makes others."""
    import hashlib  # loads OpenSSL: 15 ms that the start of the program needn't pay

    return hashlib.blake2b(content, key=key, digest_size=16).hexdigest()
