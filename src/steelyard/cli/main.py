"""Which command is meant? Names every command without importing any, runs one, and turns what went wrong into one sentence and an
exit code: 0 done, 1 it failed, 2 refused, 3 Steelyard not reachable; `run`, `shell`, `exec` and `attach` answer 125 for all
three.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from steelyard import __version__
from steelyard.errors import SteelyardError

if TYPE_CHECKING or not sys.stdout.isatty():
    from click import Group as HelpGroup
else:
    # boxed and coloured where a person looks
    from rich_click import RichGroup as HelpGroup

RUN_REFUSED = 125


class Entry(NamedTuple):
    """Where a command lives, and its line in `steelyard --help` (a test holds it equal to the command's own)."""

    section: str
    target: str
    help: str


COMMANDS: dict[str, Entry] = {
    "up": Entry("Steelyard", "steelyard.cli.up:up", "Start Steelyard on this machine, or find it running."),
    "down": Entry("Steelyard", "steelyard.cli.up:down", "Stop Steelyard and end all its work."),
    "status": Entry("Steelyard", "steelyard.cli.status:status", "Show programs, addresses and whether all is well."),
    "machine": Entry("Machines", "steelyard.cli.machine:machine", "Show this machine: cores, memory, devices, isolation."),
    "topo": Entry("Machines", "steelyard.cli.topo:topo", "Show how a machine is wired, and the paths between its devices."),
    "place": Entry("Machines", "steelyard.cli.place:place", "Show which devices and cores a workload would get, and why."),
    "nodes": Entry("Machines", "steelyard.cli.nodes:nodes", "List nodes."),
    "devices": Entry("Machines", "steelyard.cli.nodes:devices", "List GPUs, network cards and disks, and who uses them."),
    "jitter": Entry("Machines", "steelyard.cli.jitter:jitter", "Measure how late timers wake up, class by class."),
    "check": Entry("Machines", "steelyard.cli.check:check", "Look for what is wrong with this machine."),
    "cluster": Entry("Machines", "steelyard.cli.cluster:cluster", "Bring up a Slurm cluster, or work on one."),
    "pool": Entry("Machines", "steelyard.cli.pool:pool", "Have machines of a Slurm cluster, as many as there is work for."),
    "run": Entry("Jobs", "steelyard.cli.run:run", "Run a command as a job, or a function of an app."),
    "shell": Entry("Jobs", "steelyard.cli.shell:shell", "Start a job with a shell in it, or enter what runs."),
    "submit": Entry("Jobs", "steelyard.cli.submit:submit", "Submit a script that was written for sbatch."),
    "ps": Entry("Jobs", "steelyard.cli.ps:ps", "List jobs."),
    "job": Entry("Jobs", "steelyard.cli.job:job", "Show all of a job: what it asked, got, did and used."),
    "queue": Entry("Jobs", "steelyard.cli.queue:queue", "List waiting jobs, with position and estimated start."),
    "why": Entry("Jobs", "steelyard.cli.queue:why", "Say why a job waits, or a function has so many replicas."),
    "logs": Entry("Jobs", "steelyard.cli.logs:logs", "Print what a job or function wrote."),
    "attach": Entry("Jobs", "steelyard.cli.attach:attach", "Follow a running job, and answer with its exit code."),
    "exec": Entry("Jobs", "steelyard.cli.exec:run_inside", "Run a command inside a running job or a function."),
    "port-forward": Entry("Jobs", "steelyard.cli.port_forward:port_forward", "Reach ports inside a running job or a function."),
    "cp": Entry("Jobs", "steelyard.cli.copy:copy", "Copy files into a running job or a function, or out of it."),
    "stop": Entry("Jobs", "steelyard.cli.stop:stop", "Stop jobs."),
    "apply": Entry("Jobs", "steelyard.cli.apply:apply", "Make what a YAML file says true, after showing the plan."),
    "schedules": Entry("Jobs", "steelyard.cli.schedules:schedules", "List, create and delete schedules of jobs and functions."),
    "hold": Entry("Jobs", "steelyard.cli.queue:hold", "Keep a waiting job from starting."),
    "release": Entry("Jobs", "steelyard.cli.queue:release", "Let a held job start when its turn comes."),
    "priority": Entry("Jobs", "steelyard.cli.queue:priority", "Give a job another priority."),
    "accounts": Entry("Jobs", "steelyard.cli.accounts:accounts", "List accounts with shares and usage, and set shares."),
    "quotas": Entry("Jobs", "steelyard.cli.accounts:quotas", "List, set and delete what projects may hold."),
    "volumes": Entry("Jobs", "steelyard.cli.volumes:volumes", "Create, list and delete volumes."),
    "proof": Entry("Jobs", "steelyard.cli.proof:proof", "Show what a job or a function asked for beside what it got."),
    "deploy": Entry("Functions", "steelyard.cli.deploy:deploy", "Deploy an app, a web app or a server."),
    "serve": Entry("Functions", "steelyard.cli.serve:serve", "Serve an app while you work on it."),
    "call": Entry("Functions", "steelyard.cli.call:call", "Call a function, with JSON in and out."),
    "functions": Entry("Functions", "steelyard.cli.functions:functions", "List functions."),
    "revisions": Entry("Functions", "steelyard.cli.revisions:revisions", "List a function's revisions, and how they do."),
    "traffic": Entry("Functions", "steelyard.cli.revisions:traffic", "Share a function's requests between its revisions."),
    "rollback": Entry("Functions", "steelyard.cli.revisions:rollback", "Go back to an earlier revision."),
    "calls": Entry("Functions", "steelyard.cli.calls:calls", "List, show and cancel durable calls."),
    "image": Entry("Functions", "steelyard.cli.image:image", "Build, fetch, list and remove images."),
    "delete": Entry("Functions", "steelyard.cli.functions:delete", "Delete a function."),
    "keys": Entry("Functions", "steelyard.cli.functions:keys", "List, create and delete API keys."),
    "secrets": Entry("Functions", "steelyard.cli.secrets:secrets", "List, create and delete secrets."),
    "batch": Entry("Functions", "steelyard.cli.batch:batch", "Ask a function once per line of a file, in order."),
    "template": Entry("Functions", "steelyard.cli.template:template", "Show what a function's replicas are forked from."),
    "coldstarts": Entry("Functions", "steelyard.cli.functions:coldstarts", "Show what each wake cost, phase by phase."),
}

#: what `up` and Slurm's daemons start; not for people, so `--help` does not show them
PROGRAMS: dict[str, str] = {
    "supervise": "steelyard.cli.up:supervise",
    "server": "steelyard.cli.program_commands:server",
    "agent": "steelyard.cli.program_commands:agent",
    "node": "steelyard.cli.node:node",
    "pilot": "steelyard.cli.pilot:pilot",
}

_HELP = """Steelyard turns this machine into a serverless platform for functions and jobs, with no hypervisor in the path.

\b
  steelyard up --detach
  steelyard run --cpus 1 -- python train.py
  steelyard deploy app.py:app --name hello
"""


class LazyGroup(HelpGroup):
    """Imports a command's module when it is used; help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if ctx.obj == "help" and cmd_name in COMMANDS:
            return click.Command(cmd_name, short_help=COMMANDS[cmd_name].help)
        target = COMMANDS[cmd_name].target if cmd_name in COMMANDS else PROGRAMS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(importlib.import_module(module), name)
        # off since the process began (`__main__.py`); what is there by now is never looked through
        gc.freeze()
        gc.enable()
        assert isinstance(command, click.Command)
        return command

    def get_help(self, ctx: click.Context) -> str:
        ctx.obj = "help"
        return super().get_help(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section])


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"steelyard {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version.")
def steelyard() -> None: ...


def main(argv: list[str] | None = None) -> None:
    """Run one command line and exit."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        code = steelyard.main(arguments, prog_name="steelyard", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as err:
        click.echo(err.format_message())
        code = 0
    except click.ClickException as err:
        err.show()
        code = _refused(arguments, err.exit_code)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        code = 130
    except SteelyardError as err:
        click.echo(f"steelyard: {err.public}", err=True)
        code = _refused(arguments, err.exit_code)
    except BrokenPipeError:
        # the reader has gone; nothing is left to say, and the interpreter must not complain while it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as err:
        # a program's log is read by whoever mends it
        if os.environ.get("STEELYARD_TRACEBACK") or _command(arguments) in PROGRAMS:
            raise
        click.echo(
            f"steelyard: a defect of Steelyard itself: {type(err).__name__}: {err}. Work that runs goes on. "
            "STEELYARD_TRACEBACK=1 shows where it happened; please report it.",
            err=True,
        )
        code = _refused(arguments, 1)
    # what is still there need not be looked through at the interpreter's end, a tenth of a short command's time. (`run FILE.py`
    # leaves earlier: what the user's code has left open may wait for just that.)
    gc.freeze()
    sys.exit(code)


def _refused(arguments: list[str], code: int) -> int:
    """What ends with a command's code keeps all codes but one for it."""
    return RUN_REFUSED if _command(arguments) in ("run", "exec", "attach", "shell") else code


def _command(arguments: list[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "")
