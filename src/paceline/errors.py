"""Every error that a user, a file or a client can cause.

PacelineError
├── CheckpointError (ValueError)    a model file is missing, damaged or of another kind
│   └── PairMismatchError           the drafter does not belong to the target
├── ConfigError (ValueError)        a setting is out of range
├── PromptError (ValueError)        the prompt is empty, too long or not valid text
├── LogitsError (ValueError)        a row of scores leaves nothing to choose from
├── MissingDependencyError (ImportError)   an extra or the extension module is not installed
├── OutOfMemoryError (MemoryError)  a model needs more memory than is free
└── CacheError (ValueError)         a KV cache cannot do what was asked
"""


class PacelineError(Exception):
    """Base of all errors that Paceline raises on purpose."""


class CheckpointError(PacelineError, ValueError):
    """A checkpoint file is missing, damaged, or not what was expected."""


class PairMismatchError(CheckpointError):
    """The drafter was made for another target."""


class ConfigError(PacelineError, ValueError):
    """A setting is out of its range or contradicts another one."""


class PromptError(PacelineError, ValueError):
    """The prompt cannot be used: empty, too long, or with forbidden tokens."""


class LogitsError(PacelineError, ValueError):
    """A row of logits leaves nothing to choose from: NaN, infinite, or every token suppressed."""


class CacheError(PacelineError, ValueError):
    """A KV cache was asked for positions that it does not hold."""


class OutOfMemoryError(PacelineError, MemoryError):
    """A model needs more memory than is free."""


class MissingDependencyError(PacelineError, ImportError):
    """Something is not installed; the message says how to install it."""
