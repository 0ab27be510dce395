"""A new secret for a webhook, and how long the former one signs besides.

Receivers cannot change their secret at the very moment when webhookd does. So both sign for a
while: Standard Webhooks 1.0 has room for several signatures in one header, and a receiver with
either secret verifies.
"""

from dataclasses import dataclass, field
from typing import Any

from webhookd.admin import database
from webhookd.admin.database import Connection, Instant
from webhookd.admin.registry import new_secret
from webhookd.core.signing import parse_secret
from webhookd.errors import UnusableError, WebhookdError
from webhookd.text import shown

DEFAULT_OVERLAP_S = 86400.0


@dataclass(frozen=True, slots=True)
class Rotation:
    """*secret* signs from now on, the former one besides until *old_secret_until*; None: it does
    not.
    """

    secret: str = field(repr=False)
    old_secret_until: Instant | None


def rotate(
    connection: Connection,
    webhook_id: int,
    *,
    overlap_s: float = DEFAULT_OVERLAP_S,
    secret: str | None = None,
) -> Rotation:
    """Give a webhook *secret*, or a new one; the former one signs besides for *overlap_s* seconds.

    Raise `UnusableError` for a secret that cannot sign or is in use already, and, unless
    *overlap_s* is 0, while the last rotation is under way: a third secret would cut off receivers
    that have only the oldest. A former secret that cannot sign does not stay.
    """
    secret = new_secret() if secret is None else secret
    if not _can_sign(secret):
        raise UnusableError(f"the new secret cannot be used: {_why_not(secret)}")
    with connection.transaction():
        row = _locked(connection, webhook_id)
        if row["secret"] == secret:
            raise UnusableError(f"this is the secret of webhook {webhook_id} already")
        if row["overlaps"] and overlap_s > 0:
            raise UnusableError(
                f"webhook {webhook_id} still signs with its old secret too, until "
                f"{shown(row['old_secret_until'])}, and a third would cut off receivers that have "
                "only that one: wait, take the rotation back with --abort, or let the new secret "
                "be the only one at once with --overlap 0"
            )
        keeps_old = overlap_s > 0 and row["secret"] is not None and _can_sign(row["secret"])
        return _store(
            connection,
            webhook_id,
            secret=secret,
            old_secret=row["secret"] if keeps_old else None,
            overlap_s=overlap_s,
        )


def abort(connection: Connection, webhook_id: int) -> None:
    """Take a rotation back: the old secret is the only one again. Raise `UnusableError` where no
    rotation is under way.
    """
    with connection.transaction():
        row = _locked(connection, webhook_id)
        if not row["overlaps"]:
            raise UnusableError(
                f"webhook {webhook_id} signs with one secret only: there is no rotation to take "
                "back"
            )
        _store(connection, webhook_id, secret=row["old_secret"], old_secret=None, overlap_s=0.0)


def _locked(connection: Connection, webhook_id: int) -> dict[str, Any]:
    row = database.fetch_one(connection, "webhook_secrets", webhook_id=webhook_id)
    if row is None:
        raise WebhookdError(f"no webhook has the id {webhook_id}")
    return row


def _store(
    connection: Connection,
    webhook_id: int,
    *,
    secret: str,
    old_secret: str | None,
    overlap_s: float,
) -> Rotation:
    row = database.fetch_one(
        connection,
        "webhook_set_secret",
        webhook_id=webhook_id,
        secret=secret,
        old_secret=old_secret,
        overlap_s=overlap_s,
    )
    assert row is not None
    return Rotation(secret, row["old_secret_until"])


def _can_sign(secret: str) -> bool:
    return _why_not(secret) is None


def _why_not(secret: str) -> str | None:
    try:
        parse_secret(secret)
    except ValueError as error:
        return str(error)
    return None
