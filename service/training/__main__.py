"""A process that works on one train job: `python -m service.training JOB_ID`. The launcher starts it.

It claims the job before anything large is imported: where two replicas start a process for one job, one of them is
gone again at once.
"""

import os
import sys
from contextlib import closing

# Before torch is imported: OpenMP threads that wait spinning slow everything down that shares the CPU with them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from service import logs
from service.datasets.datasets import Datasets
from service.jobs import process_logs
from service.jobs.claims import Claim
from service.jobs.table import JobTable
from service.jobs.worker import Finished, Stop, run
from service.production import check_no_faults
from service.settings import Settings
from service.store import database, files


def main() -> int:
    """The exit code tells the launcher what became of the job (`service.jobs.worker`)."""
    if len(sys.argv) != 2:
        print("usage: python -m service.training JOB_ID", file=sys.stderr)  # noqa: T201
        return 2
    with process_logs.forgiving():
        return _worked_on(sys.argv[1])


def _worked_on(job_id: str) -> int:
    check_no_faults()
    settings = Settings()
    logs.configure(log_format=settings.log_format, level=settings.log_level)
    url = database.location(settings.database.get_secret_value(), settings.data)
    with closing(database.connect(url)) as work_database:
        store = files.files(settings.blobs, settings.data)

        def work(claim: Claim, stop: Stop) -> Finished:
            from service.training.trainer import trained

            return trained(settings, Datasets(work_database, store), claim, stop)

        return run(JobTable(work_database, store), job_id, work)


if __name__ == "__main__":
    sys.exit(main())
