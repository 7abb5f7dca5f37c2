"""The base of every error that a user can cause."""

__all__ = ["UserError"]


class UserError(ValueError):
    """One clear message for a user's mistake; the command line prints it without a traceback."""
