"""Who may ask, and how often: one rule for HTTP and gRPC."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.api_keys import ApiKeys
from deployments.client_address import client_address

if TYPE_CHECKING:  # the model server runs without
    from deployments.rate_limit import RateLimiter


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request goes no further."""

    detail: str
    retry_after_s: int
    """0: it lacks a key; else there were too many."""


class Access:
    """Keys, and a limit of requests: of one key, or of one address for those who show none."""

    def __init__(self, api_keys: ApiKeys, limiter: "RateLimiter | None" = None, trusted_proxies: int = 0) -> None:
        """
        Args:
            api_keys: None of them means that the service is open.
            limiter: None: there is no limit.
            trusted_proxies: As TRUSTED_PROXIES.
        """
        self._api_keys = api_keys
        self._limiter = limiter
        self._trusted_proxies = trusted_proxies

    async def refusal(
        self, api_key: str, authorization: str, forwarded_for: str, *, wants_key: bool = True
    ) -> Refusal | None:
        """Why this request may not go on; None when it may. Wrong keys count for the address, so guessing is limited.

        Args:
            api_key: Value of `X-API-Key`, empty when it was not sent.
            authorization: Value of `Authorization`.
            forwarded_for: Values of `X-Forwarded-For`, joined by commas.
            wants_key: Whether what is asked for is for those with a key, where there are keys.
        """
        owner = self._api_keys.owner(api_key, authorization)
        if self._limiter is not None:
            who = f"key {owner}" if owner else f"address {client_address(forwarded_for, self._trusted_proxies)}"
            wait_s = await self._limiter.wait_s(who)
            if wait_s:
                return Refusal(f"that is more than {self._limiter.rate} of one key or address", wait_s)
        if owner is None and wants_key and self._api_keys.are_wanted:
            return Refusal("this service wants a key: X-API-Key, or Authorization: Bearer", 0)
        return None
