"""Errors that are part of the interface."""

import errno
import os


class UserError(Exception):
    """A mistake in the input: one clear sentence that names the key and the allowed values.

    Launchers print it without a traceback and exit with status 2.
    """


def join_lines(said: object, longest: int = 200) -> str:
    """What a library said, over however many lines, for the middle of a sentence."""
    return " ".join(str(said).split())[:longest]


def describe_full_disk(error: BaseException) -> bool:
    """Whether something failed because a disk or a quota is full; libraries in other languages only say so."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


class IncompleteRun(Exception):
    """Some of the work failed and the rest is stored. Launchers print it and exit with status 1."""
