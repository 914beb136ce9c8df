"""API keys: who may use a service that is not open to everybody."""

import hashlib
import hmac
from collections.abc import Collection


class ApiKeys:
    """Knows keys by their hashes: compared in constant time, and without a readable key in memory."""

    def __init__(self, keys: Collection[str]) -> None:
        """
        Args:
            keys: None of them means that the service is open.
        """
        self._hashes = [_hash(key) for key in keys]

    def admit(self, api_key: str, authorization: str) -> bool:
        """Whether one who sends this may enter.

        Args:
            api_key: Value of `X-API-Key`, empty when it was not sent.
            authorization: Value of `Authorization`; of its schemes, `Bearer` counts.
        """
        if not self._hashes:
            return True
        scheme, _, token = authorization.partition(" ")
        sent_hash = _hash(api_key or (token.strip() if scheme.lower() == "bearer" else ""))
        matches = [hmac.compare_digest(sent_hash, key_hash) for key_hash in self._hashes]
        return any(matches)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
