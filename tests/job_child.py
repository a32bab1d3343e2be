"""A train process for tests, and the test's end of it: it does what it is told, line by line, through a pipe.

`python job_child.py DATABASE_URL DATA JOB LEASE_SECONDS` claims the job and obeys `DATA/JOB.pipe`; with `STEPS` at the
end it makes so many steps instead, from its checkpoint on.
"""

import os
import select
import signal
import sys
from pathlib import Path

from service.errors import DarkroomError
from service.jobs.claims import Claim
from service.jobs.table import JobTable
from service.jobs.worker import Finished, Stop, run
from service.store.database import connect
from service.store.files import files

DIGEST = "sha256:" + "a" * 64
CHECKPOINT = "checkpoint"


def command(url: str, data: Path, job_id: str, lease_seconds: float = 60.0, *steps: int) -> list[str]:
    return [sys.executable, __file__, url, str(data), job_id, str(lease_seconds), *map(str, steps)]


def pipe(data: Path, job_id: str) -> int:
    """The pipe to a job's process, open at both ends, so that nobody waits for the other."""
    path = data / f"{job_id}.pipe"
    if not path.exists():
        os.mkfifo(path)
    return os.open(path, os.O_RDWR)


def tell(data: Path, job_id: str, *orders: str) -> None:
    file = pipe(data, job_id)
    os.write(file, "".join(f"{order}\n" for order in orders).encode())
    # The child has the pipe open, or will find nothing: what is told is told to a running one.
    os.close(file)


def obey(orders: int, claim: Claim, stop: Stop) -> Finished:
    """Each order as it comes, until one ends the work, or until it is asked to stop."""
    while True:
        while not select.select([orders], [], [], 0.01)[0]:
            stop.check()
        for order in os.read(orders, 4096).decode().split("\n"):
            match order.split():
                case ["step", number]:
                    claim.put(CHECKPOINT, number.encode(), "text/plain", step=int(number))
                    claim.progress(step=int(number))
                case ["finish"]:
                    return Finished("fox@1", DIGEST)
                case ["fail"]:
                    raise DarkroomError("the pictures are all the same")
                case ["break"]:
                    raise ValueError("a secret at /some/path")
                case ["hang"]:
                    while True:
                        signal.pause()


def count(steps: int, claim: Claim, stop: Stop) -> Finished:
    """As a trainer does: a checkpoint at every step, and on from there."""
    done = int(claim.read(CHECKPOINT) or 0)
    for step in range(done + 1, steps + 1):
        stop.check()
        claim.put(CHECKPOINT, str(step).encode(), "text/plain", step=step)
        claim.progress(step=step)
    return Finished("fox@1", DIGEST)


def main(url: str, data: str, job_id: str, lease_seconds: str, steps: str = "") -> int:
    table = JobTable(connect(url), files("", Path(data)))
    orders = -1 if steps else pipe(Path(data), job_id)

    def work(claim: Claim, stop: Stop) -> Finished:
        return count(int(steps), claim, stop) if steps else obey(orders, claim, stop)

    return run(table, job_id, work, lease_seconds=float(lease_seconds))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
