"""A repeated order finds the job that it made, whatever has changed since."""

import pytest

from service.jobs.table import JobTable
from service.store.errors import KeyReused
from tests.trainings import a_request


def test_a_key_finds_the_job_that_it_made(table: JobTable):
    job, _ = table.create(a_request(), max_train_steps=6, key="once", fingerprint="a")
    found = table.made_with("once", "a")
    assert found is not None
    assert found.id == job.id
    assert table.made_with("never", "a") is None


def test_a_key_of_another_body_is_refused(table: JobTable):
    table.create(a_request(), max_train_steps=6, key="once", fingerprint="a")
    with pytest.raises(KeyReused):
        table.made_with("once", "b")
