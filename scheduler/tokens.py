"""The two signed tokens at the scheduler's door: the user's, which it checks, and the ticket, which it mints.

A user token comes from the operator's own backend, which knows its users: a JWT, HS256, `sub` = user id, `exp`
required. A client shows it to ask for access; it never reaches an access node. The ticket is what does.
"""

from __future__ import annotations

import jwt
import msgspec
from jwt.types import Options

from base.clock import Timestamp
from base.errors import BadRequest, TokenExpired, Unauthenticated
from base.ids import checked_id
from scheduler.api import Ticket

__all__ = ["mint_ticket", "mint_user_token", "user_of"]


def mint_ticket(ticket: Ticket, *, kid: str, key: str) -> str:
    """Sign a ticket with the HS256 secret `key`, named `kid` in its header."""
    return jwt.encode(msgspec.to_builtins(ticket), key, algorithm="HS256", headers={"kid": kid})


def mint_user_token(user: str, *, key: str, expires_at: Timestamp) -> str:
    """Sign a user token, as an operator's backend does."""
    return jwt.encode({"sub": checked_id(user, "user"), "exp": expires_at // 1000}, key, algorithm="HS256")


def user_of(token: str, *, key: str, now: Timestamp) -> str:
    """Return the user that a user token speaks for. Raises Unauthenticated or TokenExpired."""
    try:
        # Expiry is checked below, on the injected clock. A token issued in the future is one of a clock ahead of ours.
        options: Options = {"verify_exp": False, "verify_iat": False, "require": ["exp", "sub"]}
        claims = jwt.decode(token, key, algorithms=["HS256"], options=options)
        expires_at = int(claims["exp"])
        user = checked_id(str(claims["sub"]), "sub")
    except (jwt.InvalidTokenError, BadRequest, ValueError, TypeError, OverflowError) as error:
        raise Unauthenticated(f"the user token is not valid: {error}") from error
    if now // 1000 > expires_at:
        raise TokenExpired("the user token is expired")
    return user
