"""A secret is rotated: which secrets are stored and for how long, what is refused, the way back."""

from collections.abc import Iterator

import pytest

from tests.support.engine import Engine, insert, register
from tests.support.postgres import Database
from webhookd.admin import database as admin_database
from webhookd.admin import registry, rotation
from webhookd.config.options import Config
from webhookd.core.signing import parse_secret
from webhookd.errors import UnusableError, WebhookdError

FIRST = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECOND = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


@pytest.fixture
def connection(database: Database) -> Iterator[admin_database.Connection]:
    with admin_database.connect(Config(dsn=database.dsn)) as connection:
        yield connection


@pytest.fixture(autouse=True)
def webhook(database: Database) -> None:
    register(database, 1, secret=FIRST)


def stored(database: Database) -> tuple[str | None, str | None, float | None]:
    """Return the secret, the old one, and in how many seconds that ends."""
    [row] = database.execute(
        "SELECT secret, old_secret, extract(epoch FROM old_secret_until - now())::float8"
        " FROM pggit.webhooks WHERE webhook_id = 1"
    )
    return row


def end_overlap(database: Database) -> None:
    database.execute("UPDATE pggit.webhooks SET old_secret_until = now()")


def test_the_former_secret_stays_for_a_day_beside_a_new_one_that_can_sign(
    database: Database, connection: admin_database.Connection
) -> None:
    done = rotation.rotate(connection, 1)
    assert parse_secret(done.secret)
    assert done.secret not in repr(done)
    secret, old, ends_in_s = stored(database)
    assert (secret, old) == (done.secret, FIRST)
    assert ends_in_s is not None and 86400.0 - 60 < ends_in_s <= 86400.0
    shown = registry.show(connection, 1, Config())
    assert shown.old_secret_until == done.old_secret_until
    revealed = registry.show(connection, 1, Config(), reveal_secret=True)
    assert FIRST not in repr(revealed) and revealed.secret == done.secret


def test_without_an_overlap_the_new_secret_is_the_only_one(
    database: Database, connection: admin_database.Connection
) -> None:
    done = rotation.rotate(connection, 1, overlap_s=0.0, secret=SECOND)
    assert (done.secret, done.old_secret_until) == (SECOND, None)
    assert stored(database) == (SECOND, None, None)


@pytest.mark.parametrize("former", [None, "whsec_bad"])
def test_what_could_not_sign_does_not_stay(
    database: Database, connection: admin_database.Connection, former: str | None
) -> None:
    with database.connect() as owner:  # a row from before there were constraints
        for (name,) in owner.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'pggit.webhooks'::regclass"
            " AND conname LIKE 'secret_is%'"
        ).fetchall():
            owner.execute(f"ALTER TABLE pggit.webhooks DROP CONSTRAINT {name}".encode())
        owner.execute("UPDATE pggit.webhooks SET secret = %s", [former])
    rotation.rotate(connection, 1, secret=SECOND)
    assert stored(database) == (SECOND, None, None)


def test_a_third_secret_is_refused_while_two_sign_unless_it_is_to_be_the_only_one(
    database: Database, connection: admin_database.Connection
) -> None:
    rotation.rotate(connection, 1, secret=SECOND)
    before = stored(database)
    with pytest.raises(UnusableError, match=r"old secret too, until .*--abort.*--overlap 0"):
        rotation.rotate(connection, 1)
    assert stored(database)[:2] == before[:2]
    done = rotation.rotate(connection, 1, overlap_s=0.0)
    assert stored(database) == (done.secret, None, None)


def test_a_rotation_after_the_overlap_needs_nobody_to_erase_the_old_secret(
    database: Database, connection: admin_database.Connection
) -> None:
    rotation.rotate(connection, 1, secret=SECOND)
    end_overlap(database)
    done = rotation.rotate(connection, 1)
    assert stored(database)[:2] == (done.secret, SECOND)


def test_a_rotation_is_taken_back(
    database: Database, connection: admin_database.Connection
) -> None:
    rotation.rotate(connection, 1)
    rotation.abort(connection, 1)
    assert stored(database) == (FIRST, None, None)
    with pytest.raises(UnusableError, match="there is no rotation to take back"):
        rotation.abort(connection, 1)
    assert stored(database) == (FIRST, None, None)


def test_a_rotation_that_has_ended_is_not_taken_back(
    database: Database, connection: admin_database.Connection
) -> None:
    rotation.rotate(connection, 1, secret=SECOND)
    end_overlap(database)
    with pytest.raises(UnusableError, match="there is no rotation to take back"):
        rotation.abort(connection, 1)
    assert stored(database)[0] == SECOND
    assert registry.show(connection, 1, Config()).old_secret_until is None


@pytest.mark.parametrize(
    ("secret", "why"),
    [(FIRST, "the secret of webhook 1 already"), ("hunter2", "starts with whsec_")],
)
def test_a_secret_that_cannot_follow_is_refused_and_not_repeated(
    database: Database, connection: admin_database.Connection, secret: str, why: str
) -> None:
    with pytest.raises(UnusableError, match=why) as refused:
        rotation.rotate(connection, 1, secret=secret)
    assert secret not in str(refused.value)
    assert stored(database) == (FIRST, None, None)


def test_an_unknown_webhook_is_named(connection: admin_database.Connection) -> None:
    with pytest.raises(WebhookdError, match="no webhook has the id 77"):
        rotation.rotate(connection, 77)
    with pytest.raises(WebhookdError, match="no webhook has the id 77"):
        rotation.abort(connection, 77)


def test_a_claim_reads_the_old_secret_until_it_ends(
    database: Database, connection: admin_database.Connection, worker: Engine
) -> None:
    rotation.rotate(connection, 1, secret=SECOND, overlap_s=3600.0)
    insert(database, 1)
    [delivery] = worker.take()
    [(until_at,)] = database.execute(
        "SELECT extract(epoch FROM old_secret_until)::float8 FROM pggit.webhooks"
    )
    settings = delivery.settings
    assert (settings.secret, settings.old_secret) == (SECOND, FIRST)
    assert settings.old_secret_until_at == until_at
    end_overlap(database)
    insert(database, 1)
    [delivery] = worker.take()
    settings = delivery.settings
    assert (settings.secret, settings.old_secret, settings.old_secret_until_at) == (
        SECOND,
        None,
        None,
    )


def test_plain_sql_replaces_a_secret_at_once(database: Database, worker: Engine) -> None:
    database.execute("UPDATE pggit.webhooks SET secret = %s", [SECOND])
    insert(database, 1)
    [delivery] = worker.take()
    assert (delivery.settings.secret, delivery.settings.old_secret) == (SECOND, None)
