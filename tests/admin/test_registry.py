"""The registry without a command line: what goes in, what comes out, what is refused and why."""

from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from tests.support.daemon import answer_ok, headers_of
from tests.support.engine import drop_checks, insert, register
from tests.support.postgres import Database
from tests.support.receivers import Receiver, answering
from webhookd.admin import database as admin_database
from webhookd.admin import registry
from webhookd.admin.limits import KINDS, LimitInForce
from webhookd.admin.registry import NewWebhook
from webhookd.config.options import DEFAULTS, Config
from webhookd.core.model import MAX_WEBHOOK_ID
from webhookd.core.signing import format_secret
from webhookd.errors import UnusableError, WebhookdError
from webhookd.postgres.rows import LIMITS

TARGET = "https://1.1.1.1/hook"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"


@pytest.fixture
def config(database: Database) -> Config:
    return Config(dsn=database.dsn, allow_http=True, allow_network=("127.0.0.0/8",))


@pytest.fixture
def connection(config: Config) -> Iterator[admin_database.Connection]:
    with admin_database.connect(config) as connection:
        yield connection


def test_what_is_registered_is_shown_with_where_each_limit_comes_from(
    connection: admin_database.Connection, config: Config
) -> None:
    secret = registry.new_secret()
    own = {"timeout_seconds": 7.5, "max_in_flight": 3, "retry_base_seconds": 0.25}
    new = NewWebhook(TARGET, secret=secret, headers={"X-Tenant": "blue"}, limits=own)
    webhook_id = registry.add(connection, new, config)
    found = registry.show(connection, webhook_id, config)
    assert (found.webhook_id, found.registered, found.url) == (webhook_id, True, TARGET)
    assert (found.headers, found.secret) == ({"x-tenant": "blue"}, registry.HIDDEN_SECRET)
    assert list(found.limits) == [
        LimitInForce(column, own[column], own=True)
        if column in own
        else LimitInForce(column, DEFAULTS[limit.option], own=False)
        for column, limit in LIMITS.items()
    ]
    assert (found.health.health_status, found.health.waiting) == ("unknown", 0)
    revealed = registry.show(connection, webhook_id, config, reveal_secret=True)
    assert revealed.secret == secret
    assert secret not in repr(revealed) and secret not in repr(new)


def test_every_limit_is_a_column_and_a_field_of_the_configuration(database: Database) -> None:
    columns = database.execute(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'pggit.webhooks'::regclass"
    )
    assert {(column,) for column in LIMITS} <= set(columns)
    assert LIMITS.keys() == KINDS.keys()
    assert {limit.option for limit in LIMITS.values()} <= DEFAULTS.keys()


def test_ids_are_given_in_turn_and_one_that_anything_names_is_never_given_again(
    database: Database, connection: admin_database.Connection, config: Config
) -> None:
    def add(webhook_id: int | None = None) -> int:
        return registry.add(connection, NewWebhook(TARGET, webhook_id), config)

    assert [add(), add(7), add()] == [1, 7, 8]
    with pytest.raises(UnusableError, match="--id 7 is taken"):
        add(7)
    insert(database, 9)
    insert(database, 2**63 - 2)
    assert add() == 10
    # The table's own sequence follows, so that a plain INSERT without an id still works.
    [(drawn,)] = database.execute(
        f"INSERT INTO pggit.webhooks (url) VALUES ('{TARGET}') RETURNING webhook_id"
    )
    assert drawn == 11


def test_deliveries_keep_nobody_from_registering(
    database: Database, connection: admin_database.Connection, config: Config
) -> None:
    """However many ids they name, and wherever an id was given by hand."""
    assert registry.add(connection, NewWebhook(TARGET, MAX_WEBHOOK_ID), config) == MAX_WEBHOOK_ID
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
        " SELECT n, '{}' FROM generate_series(1, 3000) n"
    )
    assert registry.add(connection, NewWebhook(TARGET), config) == 3001
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
        " SELECT n, '{}' FROM generate_series(3002, 110000) n"
    )
    assert registry.add(connection, NewWebhook(TARGET), config) == 3002 + 100_000


def test_what_a_check_refuses_is_one_line_without_the_row(
    database: Database, config: Config
) -> None:
    secret = format_secret(b"k" * 32)
    with (
        pytest.raises(UnusableError) as refused,
        admin_database.connect(config) as connection,
    ):
        headers = {f"x-{number}": "1" for number in range(65)}
        registry.add(connection, NewWebhook(TARGET, secret=secret, headers=headers), config)
    assert str(refused.value) == "refused: the headers are at most 64 names"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "ftp://e.test/"}, "ftp"),
        ({"url": "https://10.0.0.1/"}, "--allow-network"),
        ({"url": "http://8.8.8.8:9000/"}, "--allow-port"),
        ({"secret": "hunter2"}, "--secret"),
        ({"headers": {"Webhook-Id": "x"}}, "--header: the header 'Webhook-Id'"),
        ({"headers": {"Host": "x"}}, "--header"),
        ({"headers": {"a": "1\r\nb: 2"}}, "--header"),
        ({"limits": {"retry_base_seconds": 28801.0}}, "must not exceed the longest, 28800 s"),
        ({"limits": {"retry_max_seconds": 1.0}}, "first delay, 5 s"),
        ({"limits": {"timeout_seconds": 601.0}}, "timeout_seconds: 601.0 is not a duration"),
        ({"limits": {"max_in_flight": 2**31}}, "max_in_flight: 2147483648"),
        ({"limits": {"rate_limit_per_second": float("nan")}}, "rate_limit_per_second: nan"),
        ({"limits": {"speed": 1.0}}, "no limit speed"),
    ],
)
def test_what_no_delivery_could_use_is_refused_in_one_line_and_nothing_is_written(
    database: Database,
    connection: admin_database.Connection,
    config: Config,
    changes: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(UnusableError) as refusal:
        registry.add(connection, NewWebhook(**{"url": TARGET, **changes}), config)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
    assert database.execute("SELECT count(*)::int FROM pggit.webhooks") == [(0,)]


def test_a_name_that_does_not_resolve_or_resolves_to_what_is_not_allowed_is_a_warning(
    config: Config,
) -> None:
    strict = Config()
    # A name to the URL's parser; it resolves to 127.0.0.1.
    assert "the address" in str(registry.resolution_warning("https://127.1:1/", strict))
    unknown = registry.resolution_warning("https://no-such-host.invalid/", strict)
    assert unknown == "no-such-host.invalid does not resolve from here"
    assert registry.resolution_warning("http://127.0.0.1:1/", config) is None


def test_the_list_stops_at_its_limit_and_says_that_there_is_more(
    database: Database, connection: admin_database.Connection
) -> None:
    register(database, 1, 2, 3)
    insert(database, 2, 5)
    cut, whole = (registry.list_webhooks(connection, limit=limit) for limit in (2, None))
    assert ([one.webhook_id for one in cut.webhooks], cut.more) == ([1, 2], True)
    assert ([one.waiting for one in whole.webhooks], whole.more) == ([0, 5, 0], False)
    assert not registry.list_webhooks(connection, limit=3).more


def test_pausing_and_resuming_say_which_ids_there_are(
    database: Database, connection: admin_database.Connection
) -> None:
    register(database, 1, 2)
    change = registry.set_enabled(connection, [2, 9, 1], enabled=False)
    assert (change.found, change.missing) == ([1, 2], [9])
    paused = registry.list_webhooks(connection).webhooks
    assert {(one.enabled, one.disabled_reason) for one in paused} == {
        (False, registry.PAUSED_REASON)
    }
    registry.set_enabled(connection, [1], enabled=True)
    states = [
        (one.enabled, one.disabled_reason) for one in registry.list_webhooks(connection).webhooks
    ]
    assert states == [(True, None), (False, registry.PAUSED_REASON)]


def test_a_webhook_that_deliveries_wait_for_is_removed_by_force_only(
    database: Database, connection: admin_database.Connection
) -> None:
    register(database, 1, 2)
    insert(database, 1, 3)
    with pytest.raises(UnusableError, match=r"3 deliveries wait .*--force"):
        registry.remove(connection, 1)
    assert (registry.remove(connection, 1, force=True), registry.remove(connection, 2)) == (3, 0)
    assert registry.list_webhooks(connection).webhooks == []


def test_an_id_that_no_webhook_has_is_named(
    database: Database, connection: admin_database.Connection, config: Config
) -> None:
    insert(database, 9)
    database.execute(
        "INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (9) ON CONFLICT DO NOTHING"
    )
    unregistered = registry.show(connection, 9, config)
    assert (unregistered.registered, unregistered.health.waiting) == (False, 1)
    for call in (
        lambda: registry.show(connection, 77, config),
        lambda: registry.remove(connection, 77),
    ):
        with pytest.raises(WebhookdError, match="no webhook has the id 77"):
            call()
    with pytest.raises(WebhookdError, match="no webhook has the id 9"):
        registry.send_test(connection, 9, config)


def test_a_test_request_is_signed_as_a_workers_is_and_its_answer_comes_back(
    connection: admin_database.Connection, config: Config
) -> None:
    secret = registry.new_secret()
    with Receiver(answer_ok) as receiver, Receiver(answering(BUSY)) as busy:
        good, bad = (
            registry.add(connection, NewWebhook(url, secret=secret, headers={"a": "b"}), config)
            for url in (receiver.url("/hook"), busy.url())
        )
        well, ill = (registry.send_test(connection, one, config) for one in (good, bad))
        [request] = receiver.requests
    headers, body = headers_of(request), request.partition(b"\r\n\r\n")[2]
    assert request.startswith(b"POST /hook HTTP/1.1\r\n")
    assert (headers["a"], headers["content-type"]) == ("b", "application/json")
    Verifier(secret).verify(body, headers)
    assert (registry.is_success(well), well.http_status) == (True, 200)
    assert (registry.is_success(ill), ill.http_status, ill.excerpt) == (False, 503, "busy")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"secret": "hunter2"}, "rotate-secret"),
        ({"headers": '{"Webhook-Id": "hunter2"}'}, "webhook 1: the header 'Webhook-Id' is set by"),
        ({"url": "https://10.0.0.1/"}, "nothing was sent to webhook 1: "),
    ],
)
def test_a_row_that_workers_could_not_use_is_not_tested_either(
    database: Database,
    connection: admin_database.Connection,
    config: Config,
    columns: dict[str, str],
    words: str,
) -> None:
    drop_checks(database)
    row = {"webhook_id": 1, "url": "https://127.0.0.1:1/", **columns}
    names, places = ", ".join(row), ", ".join(["%s"] * len(row))
    database.execute(f"INSERT INTO pggit.webhooks ({names}) VALUES ({places})", list(row.values()))
    with pytest.raises(UnusableError) as refusal:
        registry.send_test(connection, 1, config)
    assert words in str(refusal.value) and "hunter2" not in str(refusal.value)


def test_two_names_that_differ_in_case_are_refused_and_not_merged(config: Config) -> None:
    with pytest.raises(UnusableError, match="are the same to a receiver"):
        registry.check(NewWebhook(TARGET, headers={"X-A": "1", "x-a": "2"}), config)
