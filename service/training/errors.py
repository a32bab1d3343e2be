"""What ends a training. Each says what to try next."""

from service.errors import DarkroomError


class TrainingDiverged(DarkroomError):
    """The loss, or its gradient, is not a number any more."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss of step {step}, or its gradient, is not a number; the last checkpoint is kept. Try a third "
            "of the learning rate, bf16 instead of fp16, or a few warm-up steps"
        )
        self.step = step


class TrainingTooLarge(DarkroomError):
    """The device has not the memory that the training needs. Known before it starts, or met in its first step."""


class NothingToLearn(DarkroomError):
    """The dataset has no picture that could be used."""
