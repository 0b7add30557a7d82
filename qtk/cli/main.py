"""The `qtk` command: loads each subcommand at need, and turns errors into a sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import traceback
from types import FrameType

import click

import qtk
from qtk.errors import QtkError

# command -> (module under qtk.cli, one-line help): the help stands here so that `qtk --help` imports nothing heavy.
COMMANDS = {
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
    "doctor": ("doctor", "Say what this machine can run, what is missing and how to get it."),
}


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are used: qtk.cli.<module>.command."""

    def __init__(self, *args: object, lazy: dict[str, tuple[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return None
        return importlib.import_module(f"qtk.cli.{self.lazy[name][0]}").command

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
    """Merge LoRA adapters, quantize to INT4, build engines for a GPU or the CPU, and prove what was lost and gained.

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
    """Runs the command line. Returns the exit code: 0 done, 2 wrong input, 3 gate failed, 4 machine lacks, 130 stopped, 1 bug."""
    words = sys.argv[1:] if args is None else args
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
    except (KeyboardInterrupt, click.Abort):
        _say("Stopped. Nothing was left under the final name.", debug)
        return 130
    except QtkError as error:
        _say(str(error), debug)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except MemoryError:
        _say("Not enough memory on this machine.", debug)
        return 4
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _say(
                f"The disk is full{f' ({error.filename})' if error.filename else ''}. Free some room and run again.",
                debug,
            )
            return 4
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _say(f"{error.filename}: {error.strerror}.", debug)
            return 2
        return _bug(error, debug)
    except Exception as error:
        return _bug(error, debug)


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
