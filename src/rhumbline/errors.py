"""Errors that a user can act on, with the exit code of each.

    RhumblineError                 2
      InputError                   2   the input is wrong; the message lists every fault at once
        ArgumentError              2   an argument of a function has another type than its annotation
        ContrastError              2   a contrast file or its splits
        DataError                  2   a named data set could not be loaded, or differs from its declaration
        TemplateError              2   a chat template or its tokenizer
        ProtocolError              2   a protocol, preset, rule or option
        DirectionError             2   a direction is invalid or does not fit the model
        OutputError                2   a run directory or a file cannot be read or written
      ModelError                   3   the model could not be loaded, or its residual writers cannot be proved
        SourceError                2   there is no such model, device or dtype: the input is wrong, not the model
        EditError                  3   a weight edit cannot be proved; no file was saved
      VerificationError            1   a run directory is not reproduced by its rows

A message states what was given, what is expected and what to do next. The command line prints it without a traceback.
"""


class RhumblineError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 2


class InputError(RhumblineError, ValueError):
    """The input is wrong."""


class ArgumentError(InputError, TypeError):
    """An argument or a field does not have its annotated type."""


class ContrastError(InputError):
    """A contrast file is malformed, or its prompts cannot be split as requested."""


class DataError(InputError):
    """A named data set could not be loaded, or differs from its declaration."""


class TemplateError(InputError):
    """The chat template or its tokenizer does not define positions."""


class ProtocolError(InputError):
    """A protocol, preset, rule or option is invalid, or contradicts the protocol on disk."""


class DirectionError(InputError):
    """A direction is invalid, or does not fit the model."""


class OutputError(InputError):
    """A run directory or an output file cannot be read or written."""


class ModelError(RhumblineError):
    """The model could not be loaded, or its residual writers cannot be proved."""

    exit_code = 3


class SourceError(ModelError):
    """There is no such model, device or dtype: the input is wrong, not the model."""

    exit_code = RhumblineError.exit_code


class EditError(ModelError):
    """A weight edit cannot be proved on this model; no file was saved."""


class VerificationError(RhumblineError):
    """The results of a run directory are not reproduced by its rows."""

    exit_code = 1
