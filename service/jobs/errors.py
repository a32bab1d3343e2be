"""What can go wrong with a train job."""

from darkroom.types import JobState
from service.errors import DarkroomError


class JobNotFound(DarkroomError):
    """No train job has that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"train job '{job_id[:80]}' was not found; list the jobs to see which there are")
        self.job_id = job_id


class ArtifactNotFound(DarkroomError):
    """The job has no file of that name (any more)."""

    def __init__(self, job_id: str, name: str) -> None:
        super().__init__(
            f"train job '{job_id}' has no file '{name[:120]}'; the job's `artifacts` name those that it has"
        )
        self.job_id, self.name = job_id, name


class JobNotRetryable(DarkroomError):
    """Only a job that failed or was cancelled can be taken up again."""

    def __init__(self, job_id: str, state: JobState) -> None:
        super().__init__(f"train job '{job_id}' is {state}; only a failed or cancelled one can be retried")
        self.job_id, self.state = job_id, state


class NotClaimable(DarkroomError):
    """The job has ended, or another process works on it."""

    def __init__(self, job_id: str, fact: str) -> None:
        super().__init__(f"train job '{job_id}' cannot be claimed: {fact}")
        self.job_id = job_id
