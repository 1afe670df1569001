"""Every failure a person can meet, as one tree; each class has its own exit code.

    AgentError
    ├── DataError          65  the training data cannot be used as it is
    ├── NotFound           66  a file, job or version that was named does not exist
    ├── RemoteRefused      67  the remote LLM refuses what was sent: key, model or request is wrong
    ├── BaseModelError     68  the base model cannot be fetched, read or quantised
    ├── WorkerDied         69  a child process ended without an answer          (retryable)
    ├── TrainingFailed     70  the numbers went wrong: not finite, no targets
    ├── RemoteUnavailable  71  the remote LLM does not answer                  (retryable)
    ├── BudgetSpent        72  a cap on requests, tokens or money is reached   (retryable)
    ├── StateError         73  the state folder cannot be used
    ├── StorageError       74  the disk is full or failing                      (retryable)
    ├── Busy               75  somebody else holds the daemon or device lock    (retryable)
    ├── StaleAttempt       76  this attempt of a job is no longer the current one
    ├── IllegalMove        77  the job's state does not allow this
    ├── ConfigError        78  config.toml or a flag has a wrong value
    ├── CacheMiss          79  mode is cache-only and the answer was never recorded
    └── OutOfMemory        80  the box has too little memory free for this job

Codes follow sysexits.h where it has a match; argparse's own usage errors exit 2.
"""

from __future__ import annotations


class AgentError(Exception):
    """A failure with a one-line message that says what to do about it.

    Attributes:
        exit_code: the process's exit status when this reaches the command line.
        retryable: True if the same call may succeed later with nothing changed by a person.
    """

    exit_code = 1
    retryable = False


class DataError(AgentError):
    """The training data cannot be used as it is."""

    exit_code = 65


class NotFound(AgentError):
    """A file, job or version that was named does not exist."""

    exit_code = 66


class RemoteRefused(AgentError):
    """The remote LLM refuses what was sent: the key, the model or the request is wrong."""

    exit_code = 67


class BaseModelError(AgentError):
    """The base model cannot be fetched, read or quantised."""

    exit_code = 68


class WorkerDied(AgentError):
    """A child process ended without an answer."""

    exit_code = 69
    retryable = True


class TrainingFailed(AgentError):
    """The loss is not finite, or no example has a token to learn."""

    exit_code = 70


class RemoteUnavailable(AgentError):
    """The remote LLM does not answer, or not with an answer that can be read."""

    exit_code = 71
    retryable = True


class BudgetSpent(AgentError):
    """A cap on requests, tokens or money is reached."""

    exit_code = 72
    retryable = True


class StateError(AgentError):
    """The state folder cannot be created, read or written."""

    exit_code = 73


class StorageError(AgentError):
    """The disk is full or failing."""

    exit_code = 74
    retryable = True


class Busy(AgentError):
    """A daemon, `init` or a server is at work already, a database is in use, or a job leaves no room."""

    exit_code = 75
    retryable = True


class StaleAttempt(AgentError):
    """This attempt of a job is no longer the current one; its writes change nothing."""

    exit_code = 76


class IllegalMove(AgentError):
    """The job's state does not allow what was asked."""

    exit_code = 77


class ConfigError(AgentError):
    """config.toml or a flag has a wrong value."""

    exit_code = 78


class CacheMiss(AgentError):
    """The mode is cache-only and the answer was never recorded."""

    exit_code = 79


class OutOfMemory(AgentError):
    """The box has too little memory free for this job, or had when a process of it was killed."""

    exit_code = 80


BY_NAME = {cls.__name__: cls for cls in AgentError.__subclasses__()}
"""Error classes by name: how an error crosses a process boundary in a protocol answer."""
