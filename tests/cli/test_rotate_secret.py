"""`webhookd webhook rotate-secret`, and how `show` and `test` treat a webhook with two secrets."""

import json
import subprocess

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests.cli.test_commands import assert_refused, webhookd
from tests.support.daemon import LOOPBACK, answer_ok, headers_of
from tests.support.postgres import Database
from tests.support.receivers import Receiver
from webhookd.core.signing import format_secret

FIRST = format_secret(b"1" * 32)
SECOND = format_secret(b"2" * 32)
THIRD = format_secret(b"3" * 32)


def register(database: Database, url: str = "https://1.1.1.1/") -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, secret) VALUES (1, %s, %s)", [url, FIRST]
    )


def rotate(
    database: Database, *arguments: str, secret: str | None = None
) -> "subprocess.CompletedProcess[str]":
    given = () if secret is None else ("--secret-stdin",)
    return webhookd(
        *("webhook", "rotate-secret", "1", *arguments, *given), dsn=database.dsn, stdin=secret
    )


def secrets_of(database: Database) -> list[tuple[object, ...]]:
    """Return the secret, the old one, and the hours for which that signs."""
    return database.execute(
        "SELECT secret, old_secret,"
        " round(extract(epoch FROM old_secret_until - now()) / 3600)::int FROM pggit.webhooks"
    )


@pytest.mark.parametrize(
    ("arguments", "hours"), [((), 24), (("--overlap", "2h"), 2), (("--overlap", "7d"), 168)]
)
def test_the_new_secret_is_printed_and_the_old_one_signs_for_the_overlap(
    database: Database, arguments: tuple[str, ...], hours: int
) -> None:
    register(database)
    done = rotate(database, *arguments)
    assert done.returncode == 0, done.stderr
    # stdout is for scripts: the secret and nothing else.
    word, new = done.stdout.split()
    assert word == "secret" and new not in (FIRST, "")
    assert "the old secret too until" in done.stderr and new not in done.stderr
    assert secrets_of(database) == [(new, FIRST, hours)]


def test_without_an_overlap_the_old_secret_ends_at_once(database: Database) -> None:
    register(database)
    done = rotate(database, "--overlap", "0")
    assert done.returncode == 0 and "with the new secret alone" in done.stderr
    assert secrets_of(database) == [(done.stdout.split()[1], None, None)]


def test_a_secret_from_stdin_is_stored_and_not_printed(database: Database) -> None:
    register(database)
    done = rotate(database, secret=f"{SECOND}\n")
    assert done.returncode == 0, done.stderr
    assert SECOND not in done.stdout + done.stderr
    assert secrets_of(database) == [(SECOND, FIRST, 24)]


def test_an_aborted_rotation_leaves_the_old_secret_alone(database: Database) -> None:
    register(database)
    rotate(database, secret=SECOND)
    done = rotate(database, "--abort")
    assert (done.returncode, secrets_of(database)) == (0, [(FIRST, None, None)]), done.stderr
    assert "old secret alone" in done.stdout
    assert_refused(rotate(database, "--abort"), "webhook 1", "no rotation to take back")


@pytest.mark.parametrize(
    ("arguments", "secret", "words"),
    [
        ((), THIRD, ("still signs with its old secret", "--abort", "--overlap 0")),
        ((), SECOND, ("the secret of webhook 1 already",)),
        (("--overlap", "0"), "hunter2", ("the new secret cannot be used",)),
        (("--overlap", "0"), "", ("the new secret cannot be used",)),
        (("--overlap", "-1"), None, ("--overlap",)),
        (("--overlap", "soon"), None, ("--overlap", "'soon'")),
        (("--abort", "--overlap", "1h"), None, ("--abort alone",)),
        (("--abort",), THIRD, ("--abort alone",)),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_and_changes_nothing(
    database: Database, arguments: tuple[str, ...], secret: str | None, words: tuple[str, ...]
) -> None:
    register(database)
    rotate(database, secret=SECOND)
    before = secrets_of(database)
    done = rotate(database, *arguments, secret=secret)
    assert_refused(done, *words)
    assert "hunter2" not in done.stderr and THIRD not in done.stderr
    assert secrets_of(database) == before


def test_show_tells_until_when_both_sign_and_neither_secret(database: Database) -> None:
    register(database)
    assert "both secrets sign" not in webhookd("webhook", "show", "1", dsn=database.dsn).stdout
    rotate(database, secret=SECOND)
    shown = webhookd("webhook", "show", "1", dsn=database.dsn).stdout
    assert "both secrets sign until then" in shown
    assert FIRST not in shown and SECOND not in shown
    read = webhookd("webhook", "show", "1", "--json", dsn=database.dsn).stdout
    assert json.loads(read)["old_secret_until"] and FIRST not in read and SECOND not in read


def test_a_test_request_is_signed_with_both_secrets(database: Database) -> None:
    with Receiver(answer_ok) as receiver:
        register(database, receiver.url())
        for arguments in ((), ("--overlap", "0")):
            rotate(database, *arguments, secret=SECOND if not arguments else THIRD)
            done = webhookd("webhook", "test", "1", *LOOPBACK, dsn=database.dsn)
            assert done.returncode == 0, done.stderr
    both, alone = receiver.requests
    for request, signing in ((both, {FIRST, SECOND}), (alone, {THIRD})):
        body = request.partition(b"\r\n\r\n")[2]
        assert {one for one in (FIRST, SECOND, THIRD) if verifies(one, body, request)} == signing


def verifies(secret: str, body: bytes, request: bytes) -> bool:
    try:
        Webhook(secret).verify(body, headers_of(request))
    except WebhookVerificationError:
        return False
    return True
