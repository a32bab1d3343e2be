"""What can go wrong, as types with facts. The edge turns each into a status (`service/api/problems.py`)."""

from typing import Literal

Defect = Literal["nan", "black", "flat"]

_DEFECTS: dict[Defect, str] = {
    "nan": "the latents are not finite (a numerical overflow in the model)",
    "black": "it is black",
    "flat": "it is one flat colour",
}


class DarkroomError(Exception):
    """Base of everything that this service raises on purpose. Its message is fit for a caller to read."""


class InvalidPrompt(DarkroomError):
    """A prompt that cannot be read as it stands.

    `field` is `"prompt"` or `"negative_prompt"`, `position` the index of the faulty character.
    """

    def __init__(self, message: str, *, position: int, field: str = "prompt") -> None:
        super().__init__(message)
        self.message, self.position, self.field = message, position, field


class InvalidOption(DarkroomError):
    """A request field whose value is well-formed but not possible on this service."""

    def __init__(self, message: str, *, pointer: str) -> None:
        super().__init__(message)
        self.message, self.pointer = message, pointer


class ModelNotFound(DarkroomError):
    """Weights that a preset, a folder or a setting should name are not there. Nothing that a caller could mend."""


class ModelLoading(DarkroomError):
    """The weights are not resident yet."""

    def __init__(self, *, retry_after_seconds: float) -> None:
        super().__init__("the model is loading; no picture can be made yet")
        self.retry_after_seconds = retry_after_seconds


class EngineStopped(DarkroomError):
    """The engine has stopped or died; only a restart of the service brings it back."""


class Draining(DarkroomError):
    """The service is shutting down and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the service is shutting down; send the request again to another replica")


class Overloaded(DarkroomError):
    """More accepted work is waiting than the queue may hold."""

    def __init__(self, *, backlog_seconds: float, limit_seconds: float, retry_after_seconds: float) -> None:
        super().__init__(
            f"{backlog_seconds:.1f} s of work are queued and {limit_seconds:.1f} s are allowed; "
            f"try again in {retry_after_seconds:.0f} s"
        )
        self.retry_after_seconds = retry_after_seconds


class TooExpensive(DarkroomError):
    """A request that could not be done within its own deadline, were it alone."""


class DeadlineExceeded(DarkroomError):
    """The caller's `timeout_seconds`, or the service's own limit, ran out."""


class Cancelled(DarkroomError):
    """The work was cancelled before it was done."""


class UnusableImage(DarkroomError):
    """The model gave a picture that nobody wants: not-a-number, black or flat."""

    def __init__(self, defect: Defect, *, seed: int) -> None:
        super().__init__(f"the image of seed {seed} is unusable: {_DEFECTS[defect]}")
        self.defect, self.seed = defect, seed


class OutOfDeviceMemory(DarkroomError):
    """The device has no room even for a single row of this size."""


class InvalidSettings(DarkroomError):
    """The service's own settings contradict each other. Raised at start-up."""


class UnknownLora(InvalidOption):
    """A request names a LoRA that the registry does not have."""


class IncompatibleLora(DarkroomError):
    """A LoRA file that is not for the model that is resident."""


class InvalidBlend(DarkroomError):
    """LoRAs that cannot be blended, or not in the way that is asked for.

    `field` is the argument at fault: `"sources"`, `"method"`, `"rank"`, `"density"` or `"majority_sign"`.
    """

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class TooManyUploads(DarkroomError):
    """As many files are on their way in as the service takes at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} uploads are on their way already; send the file again in a moment")


class TooManyReaders(DarkroomError):
    """As many streams of events are open as the service looks after at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} streams of events are open already; ask again in a moment, or for JSON with `after`"
        )


class SwapFailed(DarkroomError):
    """LoRAs could not be put in force. The weights are as they were before."""


class WeightsLost(Exception):
    """The live weights are in no known state. Never a caller's to see: the engine stops, and a restart is the cure."""


class WeightsDamaged(DarkroomError):
    """The weights in memory are not the ones that were loaded; only a restart of the service brings them back."""


class DeviceLent(DarkroomError):
    """A train job has the device, by the policy `pause`."""

    retry_after_seconds = 30.0

    def __init__(self, since_seconds: float) -> None:
        super().__init__(
            f"a train job has had the device for {since_seconds:.0f} s; pictures are made again when it is done"
        )


class CompareTooLarge(DarkroomError):
    """A comparison that asks for more than one may; its message says what it would cost."""
