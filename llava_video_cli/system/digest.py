"""A short fingerprint of bytes."""

from __future__ import annotations


def fingerprint(content: bytes, key: bytes = b"") -> str:
    """Return 32 hexadecimal digits that differ for different contents, or for different keys of at most 64 bytes."""
    import hashlib  # it loads OpenSSL: 15 ms that most commands don't need

    return hashlib.blake2b(content, key=key, digest_size=16).hexdigest()
