"""The country to which the registries of addresses gave an address: data that comes with the package, no file."""

from __future__ import annotations

from iptocc import country_code

__all__ = ["country"]


def country(address: str) -> str:
    """Return the country's code (ISO 3166-1 alpha-2), "" if the address was given to nobody.

    It is where whoever holds the address is registered, which for a network of many countries is not where it is used.
    """
    return country_code(address) or ""
