"""Errors as people meet them: one line on standard error and an exit status; ``GENAIM_TRACEBACK=1`` shows the rest."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

DONE, BUG, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
FOREIGN_INPUT_ERRORS = ("SafetensorError", "YAMLError")
"""Libraries' errors that tell of the input or the machine, by name, since the libraries may not be imported."""
MEMORY_IS_FULL = ("can't allocate memory", "not enough memory", "out of memory")
"""What PyTorch's RuntimeErrors say of a CPU on Linux, on Windows, and of a GPU."""


class Stopped(Exception):
    """A job was interrupted and has told how to go on."""


def guarded(command: Callable[[], object]) -> int:
    """Runs a command; returns its exit status, having told an error in one line."""
    try:
        with _terminated_by_exit():
            result = command()
    except (KeyboardInterrupt, typer.Abort):  # older Typers turn the one into the other
        result = INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":  # the first process speaks for all
            print(one_line(stopped), file=sys.stderr)
        return INTERRUPTED
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else BUG
    except Exception as error:
        if os.environ.get("GENAIM_TRACEBACK"):
            raise
        expected = is_bad_input(error)
        bug = "" if expected else f"internal error, {type(error).__name__}: "
        hint = "" if expected else " (GENAIM_TRACEBACK=1 shows where; please report it)"
        print(f"error: {bug}{one_line(error)}{hint}", file=sys.stderr)
        return BAD_INPUT if expected else BUG
    status = result if isinstance(result, int) else DONE
    if status == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return status


def is_bad_input(error: Exception) -> bool:
    """Whether an error tells of the input or the machine, and not of a bug."""
    if isinstance(error, ValueError | OSError | ImportError) or hasattr(error, "format_message"):
        return True
    if is_out_of_memory(error):
        return True
    return any(kind.__name__ in FOREIGN_INPUT_ERRORS for kind in type(error).__mro__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that the memory of the machine or of its GPU is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_IS_FULL)


def one_line(error: Exception) -> str:
    """What went wrong, without line breaks."""
    if isinstance(error, OSError) and error.strerror:
        text = f"'{error.filename}': {error.strerror}" if error.filename else error.strerror
    elif is_out_of_memory(error):
        text = "the machine's memory is full; use a smaller batch size."
    elif hasattr(error, "format_message"):  # a wrong option or command
        text = _usage(error)
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__


def _usage(error: Any) -> str:
    """What is wrong about a command line, from click's error, and what is allowed."""
    from genaim.config import nearest, requirement

    text = requirement(error.format_message())
    unknown = re.match(r"No such command '([^']*)'", text)
    if unknown and error.ctx:
        return f"no such command '{unknown[1]}'; {nearest(unknown[1], error.ctx.command.list_commands(error.ctx))}."
    return text


@contextmanager
def _terminated_by_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that temporary folders are removed."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
