"""Errors that are part of the interface."""


class UserError(Exception):
    """A mistake in the input: one clear sentence that names the key and the allowed values.

    Launchers print it without a traceback and exit with status 2.
    """


class Incomplete(Exception):
    """Some of the work failed and the rest is stored. Launchers print it and exit with status 1."""
