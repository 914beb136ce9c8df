"""API keys: who may use a service that is not open to everybody. ``python -m deployments.api_keys`` makes one.

A key is a random token of 256 bits, so that one round of SHA-256 hides it: there is nothing to guess that a slow hash
would protect. Several keys are valid at once; one is replaced by adding its successor, and taking it away once its
users have that.
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection

import typer

from circles.settings import HASHED_KEY_PREFIX

_KEY_BYTES = 32


class ApiKeys:
    """Knows keys by their hashes: compared in constant time, and without a readable key in memory."""

    def __init__(self, keys: Collection[str]) -> None:
        """
        Args:
            keys: Each a key, or ``sha256:`` and the hash of one. None of them means that the service is open.
        """
        self._hashes = [_known_hash(key) for key in keys]

    @property
    def are_wanted(self) -> bool:
        """Whether there are any."""
        return bool(self._hashes)

    def owner(self, api_key: str, authorization: str) -> str | None:
        """A name for the key that was shown, which does not tell the key; None when it is none of these.

        Args:
            api_key: Value of `X-API-Key`, empty when it was not sent.
            authorization: Value of `Authorization`; of its schemes, `Bearer` counts.
        """
        scheme, _, token = authorization.partition(" ")
        sent_hash = _hash(api_key or (token.strip() if scheme.lower() == "bearer" else ""))
        matches = [hmac.compare_digest(sent_hash, key_hash) for key_hash in self._hashes]
        return sent_hash.hex() if any(matches) else None


def _known_hash(key: str) -> bytes:
    if key.startswith(HASHED_KEY_PREFIX):
        return bytes.fromhex(key.removeprefix(HASHED_KEY_PREFIX))
    return _hash(key)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def main() -> None:
    """Make a key. It is shown this once; the service needs its hash alone."""
    key = secrets.token_urlsafe(_KEY_BYTES)
    typer.echo(f"for the client:    {key}")
    typer.echo(f"for API_KEYS:      {HASHED_KEY_PREFIX}{_hash(key).hex()}")


if __name__ == "__main__":
    typer.run(main)
