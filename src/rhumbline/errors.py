"""Every error that rhumbline raises on purpose, and the exit code that each one means.

    RhumblineError                 2
      InputError                   2   what the user gave is wrong; the message lists every fault at once
        ContrastError              2   a contrast file or its splits
        DataError                  2   a named data set cannot be had, or is not what was declared
        TemplateError              2   a chat template or its tokenizer
        ProtocolError              2   a protocol, preset, rule or option
        DirectionError             2   a direction is invalid or does not fit the model
        OutputError                2   a run directory or file cannot be used
      ModelError                   3   the model cannot be loaded or its structure is not understood
        EditError                  3   a weight edit cannot be proved; nothing was saved
      VerificationError            1   a run directory does not say what its rows say

A message says what was given, what is allowed and what to do next. The command line prints it without a traceback.
"""


class RhumblineError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 2


class InputError(RhumblineError, ValueError):
    """What the user gave is wrong."""


class ContrastError(InputError):
    """A contrast file is malformed, or its prompts cannot be split as asked."""


class DataError(InputError):
    """A named data set cannot be had, or is not what was declared."""


class TemplateError(InputError):
    """The chat template or its tokenizer cannot be used for positions."""


class ProtocolError(InputError):
    """A protocol, preset, rule or option is invalid, or contradicts the one on disk."""


class DirectionError(InputError):
    """A direction is invalid, or does not fit the model it is used on."""


class OutputError(InputError):
    """A run directory or an output file cannot be read or written."""


class ModelError(RhumblineError):
    """The model cannot be loaded, or its residual stream is not understood."""

    exit_code = 3


class EditError(ModelError):
    """A weight edit cannot be proved on this model; nothing was saved."""


class VerificationError(RhumblineError):
    """A run directory does not say what its own rows say."""

    exit_code = 1
