"""What a service that people use refuses to start with."""

from lora_registry import faults
from service.errors import InvalidSettings


def check_no_faults() -> None:
    """Let a service start only where nothing makes it fail on purpose.

    Raises:
        InvalidSettings: fault points of the tests are armed.
    """
    if faults.armed():
        raise InvalidSettings(
            f"{faults.VARIABLE} is set, which makes the service fail on purpose, for tests of the registry only; "
            "unset it"
        )
