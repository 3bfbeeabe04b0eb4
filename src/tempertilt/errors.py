"""Errors that a user can act on: what was wrong, the value seen, what is valid, what to do next."""

from __future__ import annotations


class TemperTiltError(Exception):
    """Base of every error that tempertilt raises on purpose; the command line prints it and exits with status 2."""


class ConfigError(TemperTiltError, ValueError):
    """An option has a value that is not valid."""


class DataError(TemperTiltError, ValueError):
    """A record, a file of records or a set of records is not usable."""


class ModelError(TemperTiltError, ValueError):
    """A base model cannot be found, loaded or unlearned from."""


class AdapterError(TemperTiltError, ValueError):
    """An adapter is missing, damaged, or belongs to another base model."""


class LedgerError(TemperTiltError, ValueError):
    """A ledger of requests is missing or damaged, or does not allow what was asked for."""


class MissingExtraError(TemperTiltError, ImportError):
    """An optional package is needed.

    Args:
        package: the distribution that is missing.
        extra: the extra of tempertilt that installs it.
        purpose: what it is needed for.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: run  pip install 'tempertilt[{extra}]'")
