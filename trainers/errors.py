"""Everything that can go wrong with a run, each kind with its exit code.

    TrainerError (ValueError)
    ├── ConfigError       2   a flag or a combination of flags makes no sense
    ├── DataError         3   a data file is malformed; names file and line
    ├── CheckpointError   3   a checkpoint is missing, damaged or refused
    ├── DiskFullError          4
    ├── FolderInUseError       5   another run holds the output folder
    ├── StepError                  a step could not be taken; names the last good checkpoint
    │   ├── DivergedError      6   the loss or the weights stopped being finite
    │   ├── RewardServerError  3   the reward server does not answer, or not with rewards
    │   └── RolloutError       3   vLLM does not answer, or not with the policy's weights
    ├── OutOfMemoryError       7   where Python could see it
    └── StoppedError         143   SIGTERM (130 for Ctrl-C), after saving

Errors of the operating system, torch and safetensors become one of these in `translate`, and nowhere else.
"""

import errno


class TrainerError(ValueError):
    """An error with one line for the user and an exit code; never shown with a traceback."""

    exit_code = 2


class ConfigError(TrainerError):
    """The flags cannot be carried out."""


class DataError(TrainerError):
    """A data set cannot be used as it is."""

    exit_code = 3


class CheckpointError(TrainerError):
    """A checkpoint cannot be used as it is."""

    exit_code = 3


class DiskFullError(TrainerError):
    """The disk or the quota is full."""

    exit_code = 4


class FolderInUseError(TrainerError):
    """Another process trains into the same output folder."""

    exit_code = 5


class StepError(TrainerError):
    """A step of training could not be taken."""

    advice = ""
    """What the user may try, after the last good checkpoint has been named."""
    is_undone = True
    """Whether weights and optimizer are as they were before the step."""


class DivergedError(StepError):
    """The loss, the gradient or the weights are no longer finite."""

    exit_code = 6
    advice = "try a lower --learning_rate"


class RewardServerError(StepError):
    """A reward server does not answer, or not with rewards."""

    exit_code = 3
    advice = "--resume_from_checkpoint continues there"


class RolloutError(StepError):
    """The engine that samples does not answer, or not with the weights of the policy."""

    exit_code = 3
    advice = "--resume_from_checkpoint continues there"


class OutOfMemoryError(TrainerError):
    """The device or the host refused memory."""

    exit_code = 7


class StoppedError(TrainerError):
    """The run was asked to stop and has saved what it had."""

    def __init__(self, message: str, exit_code: int = 143) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
# safetensors and torch.save report a full disk only in their text.
_NO_SPACE_TEXT = ("no space left on device", "disk quota exceeded")
_NO_MEMORY_TEXT = ("out of memory", "can't allocate memory", "not enough memory")


def translate(error: Exception) -> TrainerError | None:
    """Returns our error for a foreign one that means a full disk or full memory, else None."""
    if isinstance(error, TrainerError):
        return error
    text = str(error).lower()
    if (isinstance(error, OSError) and error.errno in _NO_SPACE) or any(t in text for t in _NO_SPACE_TEXT):
        return DiskFullError("the disk is full: free some space and continue with --resume_from_checkpoint")
    if isinstance(error, MemoryError) or any(t in text for t in _NO_MEMORY_TEXT):
        return OutOfMemoryError(
            "out of memory: lower --per_device_train_batch_size (raise --gradient_accumulation_steps "
            "to keep the step the same) or --max_length"
        )
    return None
