"""What a person can put right."""

import importlib
from collections.abc import Sequence
from types import ModuleType


class UserError(ValueError):
    """Bad input: the message is one line that names the file or field and says what to do.

    Commands print it and exit with code 2; everything else that is raised is a fault of ours.
    """


class Stopped(Exception):
    """What is under way was asked to end, and can be gone on with; the message says from where."""


class MissingPackage(UserError):
    """A package is not installed; the message names it and the command that installs it."""


def first_of(problems: Sequence[str], kind: str) -> list[str]:
    """Three of them, and how many more there are: "7 more `kind`"."""
    more = len(problems) - 3
    return [*problems[:3], *([f"{more} more {kind}"] if more > 0 else [])]


def optional_import(
    module: str, *, use: str, extra: str | None = None, install: str | None = None
) -> ModuleType:
    """Import an optional dependency. Raises MissingPackage, which says what it is for and how to
    install it: with an `extra` of this project, by the command `install`, or else by its name."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        name = f"-e '.[{extra}]'" if extra else package  # this project is in no index
        install = install or f"pip install {name}"
        raise MissingPackage(f"{package} is needed to {use} ({error}): {install}") from error
