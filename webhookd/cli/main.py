"""`webhookd`: the daemon without a subcommand, everything else below it."""

import os
import sys

import click

from webhookd import __version__
from webhookd.cli.databases import adopt, migrate
from webhookd.cli.delivery import delivery
from webhookd.cli.doctor import doctor
from webhookd.cli.local import demo, listen
from webhookd.cli.metrics import metrics
from webhookd.cli.options import (
    SectionedGroup,
    SectionedOption,
    config_file_option,
    config_options,
    load_settings,
)
from webhookd.cli.status import status
from webhookd.cli.webhook import webhook
from webhookd.config.options import OPTIONS
from webhookd.errors import UnusableError, WebhookdError

INTERRUPTED = 130


@click.group(
    cls=SectionedGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="webhookd")
@click.option(
    "--print-config",
    is_flag=True,
    cls=SectionedOption,
    help="Print the value and source of each option, and exit.",
)
@config_file_option
@config_options(OPTIONS)
@click.pass_context
def cli(ctx: click.Context, /, print_config: bool, **_: object) -> None:
    """Deliver webhooks from a PostgreSQL queue.

    Without a command: run in the foreground, with --workers processes. Each option is also a
    variable WEBHOOKD_<OPTION> and a key of the TOML file that --config names. The command line wins
    over the environment, the environment over the file.
    """
    if print_config:
        from webhookd.cli.run import print_settings

        print_settings(load_settings(ctx))
        ctx.exit(0)
    if ctx.invoked_subcommand is None:
        _refuse_command_as_folder(ctx)
        from webhookd.cli.run import run

        ctx.exit(run(load_settings(ctx, with_psycopg=False)))


for command in (migrate, adopt, webhook, delivery, status, doctor, metrics, listen, demo):
    cli.add_command(command)


def main() -> None:
    """Run the command line. Any error is one line on stderr: exit 2 for a wrong command line,
    configuration or schema, else 1.
    """
    try:
        code = cli.main(prog_name="webhookd", standalone_mode=False)
    except click.UsageError as error:
        _fail(_usage_line(error), 2)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except UnusableError as error:
        _fail(str(error), 2)
    except WebhookdError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has closed it. Without this, Python would report the error
        # again when it flushes stdout at exit.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        # Mostly a full disk. Without this, Python would print a traceback when it flushes stdout at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"cannot read or write: {error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_command_as_folder(ctx: click.Context) -> None:
    """Raise `UnusableError` for `webhookd --embedded status`: DIR is optional, so click takes the
    command as the folder and would start a database in ./status.
    """
    folder = ctx.params["embedded"]
    if folder in cli.commands:
        raise UnusableError(
            f"--embedded took {folder!r} as its folder: put {folder} before --embedded, or "
            f"write ./{folder}"
        )


def _usage_line(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else "webhookd"
    return f"{error.format_message().rstrip('.')} (see `{command} --help`)"


def _fail(line: str, code: int) -> None:
    print(f"webhookd: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)
