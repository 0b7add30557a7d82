"""The `qtk` command: loads each subcommand at need, and turns errors into a sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import select
import signal
import sys
import traceback
from types import FrameType

import click

import qtk
from qtk.errors import QtkError

# pydantic looks through every installed package for plugins before its first model, which takes longer than most commands
# that read files. qtk uses none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

# command -> (module under qtk.cli, one-line help): the help stands here so that `qtk --help` imports nothing heavy.
COMMANDS = {
    "quickstart": ("quickstart", "Run the whole chain on a small packaged model, in some minutes."),
    "merge": ("merge", "Merge LoRA adapters into a base model, streaming."),
    "quantize": ("quantize", "Quantize a float model to INT4."),
    "plan": ("plan", "Say whether an engine fits a GPU, and the bound on its speed."),
    "build-engine": ("build_engine", "Build an inference engine for a GPU or the CPU."),
    "generate": ("generate", "Generate text with an engine."),
    "bench": ("bench", "Measure latency, divergence and accuracy; compare results."),
    "accept": ("accept", "Run an engine's checks on the machine it is for, and record them."),
    "run": ("run", "Run a recipe: merge, quantize, build, bench, report."),
    "report": ("report", "Write the Markdown report of a run."),
    "inspect": ("inspect", "Say what a model, engine or run directory holds."),
    "verify": ("verify", "Check a directory and its whole chain of inputs against the manifests."),
    "gpus": ("gpus", "List the GPUs that engines can be built for."),
    "doctor": ("doctor", "Say what this machine can run, what is missing, and how to get it."),
}


_NO_MEMORY = "Not enough memory on this machine."
# How torch says that it could not allocate, which it raises as a plain RuntimeError.
_ALLOCATION_PHRASES = ("can't allocate memory", "not enough memory", "out of memory")
# System errors that mean that a given path cannot be used.
_UNUSABLE_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


class _BrokenPipe(Exception):
    """A pipe broke. On a BrokenPipeError click would end the command by itself, without a message."""


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is used: qtk.cli.<module>.command."""

    def __init__(self, *args: object, lazy: dict[str, tuple[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return None
        return importlib.import_module(f"qtk.cli.{self.lazy[name][0]}").command

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            print(end="", flush=True)  # here, because an error of Python's own flush at exit cannot be caught
            return result
        except BrokenPipeError as error:
            raise _BrokenPipe(str(error)) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.lazy, n=3) if args else []
            if close:
                raise click.UsageError(f"{error.message} Did you mean {' or '.join(close)}?", ctx) from None
            raise


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(qtk.__version__, prog_name="qtk")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def cli(debug: bool, quiet: bool) -> None:
    """Merge LoRA adapters, quantize to INT4, build engines for a GPU or the CPU, and measure what was lost and gained.

    \b
    qtk merge BASE ADAPTER -o merged
    qtk quantize merged -o int4 --method gptq
    qtk build-engine int4 -o engine --gpu cpu
    qtk bench latency engine
    """
    if quiet:
        from qtk.progress import silence_progress

        silence_progress()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(args: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0 done, 1 a bug, 2 wrong input, 3 a check failed, 4 the machine lacks
    something, 130 stopped."""
    try:
        return _run(sys.argv[1:] if args is None else args)
    finally:
        _let_go_of_stdout()


def _run(words: list[str]) -> int:
    debug = "--debug" in words
    signal.signal(signal.SIGTERM, _interrupt)  # so that a terminated command tidies up like an interrupted one
    try:
        result = cli.main(args=words, prog_name="qtk", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort) as error:
        _say(_stopped(error), debug)
        return 130
    except QtkError as error:
        _say(str(error), debug)
        return error.exit_code
    except MemoryError:
        _say(_NO_MEMORY, debug)
        return 4
    except _BrokenPipe as error:
        return _broken_pipe(error, debug)
    except OSError as error:
        return _failed_call(error, debug)
    except RuntimeError as error:
        if any(phrase in str(error) for phrase in _ALLOCATION_PHRASES):
            _say(f"{_NO_MEMORY} ({str(error).strip().splitlines()[0]})", debug)
            return 4
        return _bug(error, debug)
    except Exception as error:
        return _bug(error, debug)


def _stopped(error: BaseException) -> str:
    """What a stopped command says, with what `staged_directory` reports as left behind (click wraps the interrupt)."""
    interrupt = error if isinstance(error, KeyboardInterrupt) else error.__cause__
    left = interrupt.args[0] if isinstance(interrupt, KeyboardInterrupt) and interrupt.args else ""
    return f"Stopped. {left}".strip()


def _failed_call(error: OSError, debug: bool) -> int:
    """The exit code of a failed system call: no room on the disk or in memory, a path that cannot be used, or a bug."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        _say(f"The disk is full{where}. Free some room and run again.", debug)
        return 4
    if error.errno == errno.ENOMEM:
        _say(_NO_MEMORY, debug)
        return 4
    if error.filename and error.errno in _UNUSABLE_PATH:
        _say(f"{error.filename}: {error.strerror}.", debug)
        return 2
    return _bug(error, debug)


def _broken_pipe(error: _BrokenPipe, debug: bool) -> int:
    """Not an error where stdout has lost its reader. Another broken pipe (a helper process has died) is a bug."""
    if not _nobody_reads_stdout():
        return _bug(error, debug)
    return 0


def _let_go_of_stdout() -> None:
    """Drops what could not be written: at exit Python would try again, complain, and change the exit code."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nobody_reads_stdout() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))
    except (OSError, ValueError):
        return False


def _say(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"qtk: {message}", file=sys.stderr)


def _bug(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"qtk: a bug: {type(error).__name__}: {error}. Run again with --debug and report it.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
