"""The `qtk` command: loads each subcommand at need, and turns errors into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import copy
import errno
import importlib
import io
import os
import re
import resource
import select
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.shell_completion import CompletionItem

import qtk
from qtk.errors import InputError, MachineError, QtkError
from qtk.redaction import redact
from qtk.sizes import size_text
from qtk.wording import printable

# pydantic looks through every installed package for plugins before its first model, which takes longer than most commands
# that read files. qtk uses none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

# command -> (module under qtk.cli, one-line help): the help stands here so that `qtk --help` imports nothing heavy.
COMMANDS = {
    "quickstart": ("quickstart", "Run the whole chain on a small packaged model, in some minutes."),
    "finetune": ("finetune", "Train an adapter on one task or several, LoRA or QLoRA."),
    "merge": ("merge", "Merge LoRA adapters into a base model, streaming."),
    "quantize": ("quantize", "Quantize a float model to INT4."),
    "plan": ("plan", "Say whether an engine fits a GPU, and the bound on its speed."),
    "build-engine": ("build_engine", "Build an inference engine for a GPU or the CPU."),
    "generate": ("generate", "Generate text with an engine."),
    "serve": ("serve", "Serve an engine over HTTP, with OpenAI's API."),
    "bench": ("bench", "Measure latency, divergence and accuracy; compare results."),
    "accept": ("accept", "Run an engine's checks on the machine it is for, and record them."),
    "run": ("run", "Run a recipe: merge, quantize, build, bench, report."),
    "sweep": ("sweep", "Run a recipe at every point of a grid of its settings, and rank the results."),
    "recipe": ("recipe", "Write a recipe for a model, show what one says, export the schema for editors."),
    "report": ("report", "Write the Markdown report of a run."),
    "gate": ("gate", "Hold a run against what must hold before a release."),
    "bundle": ("bundle", "Make the directory that is released: model or engine, card, report, proof, what starts it."),
    "publish": ("publish", "Upload a bundle to a hub or a directory; without --yes, say what would be done."),
    "inspect": ("inspect", "Say what a model, engine or run directory holds."),
    "verify": ("verify", "Check a directory and its whole chain of inputs against the manifests."),
    "gpus": ("gpus", "List the GPUs that engines can be built for."),
    "list": ("list_names", "List suites, containers, backends, recipes, architectures, GPUs or gates."),
    "doctor": ("doctor", "Say what this machine can run, what is missing, and how to get it."),
    "completion": ("completion", "Print the script that completes qtk's words in a shell."),
    "help": ("help_text", "Show the help of a command."),
    "version": ("version", "Show qtk's version."),
}


_NO_FILES = "Too many files are open. Raise the limit (ulimit -n 1024) and run again."
_NO_MEMORY = "Not enough memory on this machine."
# How torch says that it could not allocate, which it raises as a plain RuntimeError.
_ALLOCATION_PHRASES = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "failed to map segment",  # of a library that is loaded
    "can't start new thread",
    "failed to allocate",
)
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
_DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_SURROGATE = re.compile("[\ud800-\udfff]")


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
        return _with_global_options(importlib.import_module(f"qtk.cli.{self.lazy[name][0]}").command)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The subcommands with their help from the table, so that completing a name imports no command."""
        names = [
            CompletionItem(name, help=text) for name, (_, text) in self.lazy.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

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


def _quiet(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        from qtk.progress import silence_progress

        silence_progress()


def _show_version(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        click.echo(f"qtk, version {qtk.__version__}")
        context.exit()


def _global_options(*, hidden: bool) -> list[click.Option]:
    """The options that are taken before and after the name of a command. --debug is read by `main`, from the words."""
    always: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True, "hidden": hidden}
    return [
        click.Option(["--version"], callback=_show_version, help="Show qtk's version.", **always),
        click.Option(["--debug"], help="Show the traceback of an error.", **always),
        click.Option(["-q", "--quiet"], callback=_quiet, help="No progress on stderr.", **always),
    ]


def _with_global_options(command: click.Command) -> click.Command:
    """The command, which takes the global options too; its own --help leaves them to `qtk --help`."""
    command = copy.copy(command)
    command.params = [*command.params, *_global_options(hidden=True)]
    return command


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    params=_global_options(hidden=False),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The options stand before the command or after it.",
)
def cli() -> None:
    """Merge LoRA adapters, quantize to INT4, build engines for a GPU or the CPU, and measure what was lost and gained.

    \b
    qtk merge BASE ADAPTER -o merged
    qtk quantize merged -o int4 --method gptq
    qtk build-engine int4 -o engine --gpu cpu
    qtk bench latency engine
    """


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(args: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0 done, 1 a bug, 2 wrong input, 3 a check failed, 4 the machine lacks
    something, 130 stopped. With --json, an error is told on stdout as well, as a JSON object, unless the command has
    printed its own already."""
    _open_what_is_closed()
    try:
        return _run(sys.argv[1:] if args is None else args)
    finally:
        _let_go_of_stdout()


def _run(words: list[str]) -> int:
    debug = "--debug" in words
    printed: list[object] = []
    signal.signal(signal.SIGTERM, _interrupt)  # so that a terminated command tidies up like an interrupted one
    try:
        _require_surroundings(words)
        _watch_the_limit()
        result = cli.main(args=words, prog_name="qtk", standalone_mode=False, obj=printed)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, _BrokenPipe) and _nobody_reads_stdout():
            return 0  # not an error; another broken pipe (a helper process has died) is a bug
        if isinstance(error, click.NoSuchOption):
            error = _answered(error)
        code, message = _failure(error, words)
        message = redact(message)
        if debug:
            print(redact(traceback.format_exc()), file=sys.stderr)
        if isinstance(error, click.ClickException):
            shown = io.StringIO()
            error.show(shown)
            print(redact(shown.getvalue()), end="", file=sys.stderr)
        else:
            print(printable(f"qtk: {message}"), file=sys.stderr)
        if "--json" in words and not printed:
            from qtk.cli.output import emit_error

            with contextlib.suppress(OSError):  # the reader may have gone
                emit_error(message, code, _command_of(words))
        return code


def _answered(error: click.NoSuchOption) -> click.UsageError:
    """The error, with what the option of another tool or command is called here instead of click's guess."""
    from qtk.cli.peer_options import answer

    command = error.ctx.command_path.partition(" ")[2] if error.ctx else ""
    said = answer(command, error.option_name)
    return error if said is None else click.UsageError(f"No such option '{error.option_name}'. {said}", error.ctx)


def _command_of(words: Sequence[str]) -> str:
    """The command that the words name ("bench compare"), as far as they name one."""
    found: list[str] = []
    group: click.Command | None = cli
    for word in words:
        if not isinstance(group, LazyGroup) or (word not in group.lazy and not word.startswith("-")):
            break
        if word in group.lazy:
            found.append(word)
            group = group.get_command(click.Context(group), word)
    return " ".join(found)


def _failure(error: BaseException, words: Sequence[str]) -> tuple[int, str]:
    """The exit code of an error, and the sentence for it."""
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return 130, _stopped(error)
    if isinstance(error, click.ClickException):
        return 2, error.format_message()
    if isinstance(error, QtkError):
        return error.exit_code, str(error)
    if isinstance(error, MemoryError):
        return 4, _NO_MEMORY
    if isinstance(error, OSError) and (failed := _failed_call(error)):
        return failed
    if not isinstance(error, OSError) and any(phrase in str(error).lower() for phrase in _ALLOCATION_PHRASES):
        return 4, f"{_NO_MEMORY} ({str(error).strip().splitlines()[0]})"
    if isinstance(error, ImportError) and os.strerror(errno.EMFILE) in str(error):
        return 4, _NO_FILES
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of Path.resolve, until Python 3.12
        return 2, f"{error}: a link that leads to itself. Give another path."
    again = shlex.join(["qtk", "--debug", *(word for word in words if word != "--debug")])
    return 1, f"a bug: {type(error).__name__}: {error}. Please report it, with what this prints: {again}"


def _stopped(error: BaseException) -> str:
    """What a stopped command says, with what `staged_directory` reports as left behind (click wraps the interrupt)."""
    interrupt = error if isinstance(error, KeyboardInterrupt) else error.__cause__
    left = interrupt.args[0] if isinstance(interrupt, KeyboardInterrupt) and interrupt.args else ""
    return f"Stopped. {left}".strip()


def _failed_call(error: OSError) -> tuple[int, str] | None:
    """Exit code and sentence of a failed system call: no room on the disk or in memory, a path that cannot be used. None
    for any other, which is a bug."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in _DISK_FAILS and (problem := _stdout_fails()):
        return 4, f"What the command prints cannot be written: {problem}. What it wrote into files is complete."
    if error.errno == errno.EFBIG:
        return 4, f"A file{where} would be larger than this machine allows. Raise the limit (ulimit -f) and run again."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return 4, _NO_FILES
    if error.errno == errno.EIO:
        return 4, f"The disk could not be read or written{where}: {error.strerror}. Look after the disk and run again."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 4, f"The disk is full{where}. Free some room and run again."
    if error.errno == errno.ENOMEM:
        return 4, _NO_MEMORY
    if error.filename and error.errno in _UNUSABLE_PATH:
        return 2, f"{error.filename}: {error.strerror}."
    return None


def _open_what_is_closed() -> None:
    """Opens stdin, stdout and stderr where the caller closed them: else the next file that is opened gets their number, and what is
    printed goes into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a terminal of another language cannot stop a command


def _require_surroundings(words: Sequence[str]) -> None:
    """InputError for arguments that are not text, and for a working directory that is gone."""
    for word in words:
        if _SURROGATE.search(word):
            shown = os.fsencode(word).decode(errors="backslashreplace") if _from_bytes(word) else ascii(word)
            raise InputError(f"{shown} is not UTF-8 text. Give another name, or set LC_ALL=C.UTF-8 where it is.")
    try:
        os.getcwd()
    except OSError:
        raise InputError("The working directory was removed. Change to another one and run again.") from None


def _watch_the_limit() -> None:
    """Where address space is limited (ulimit -v), sees to it that torch is not loaded into less than it takes: it would abort."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and "torch" not in sys.modules:
        sys.meta_path.insert(0, _RoomForTorch(limit))


class _RoomForTorch:
    """Finds no module; refuses torch where the limit is below the size of its libraries and a quarter more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torch":
            return
        folders = [Path(folder) / "torch" / "lib" for folder in sys.path]
        size = sum(library.stat().st_size for folder in folders if folder.is_dir() for library in folder.glob("*.so*"))
        needed = size * 5 // 4 + (512 << 20)
        if self._limit < needed:
            raise MachineError(
                f"{_NO_MEMORY} torch takes {size_text(needed)} of address space, and this process may take "
                f"{size_text(self._limit)} (ulimit -v). Raise the limit and run again."
            )


def _from_bytes(word: str) -> bool:
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True


def _stdout_fails() -> str:
    """Why stdout cannot be written, empty where it can be."""
    try:
        print(end="", flush=True)
    except OSError as error:
        return error.strerror or str(error)
    return ""


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


if __name__ == "__main__":
    sys.exit(main())
