"""Logs of processes: the job's to keep once nobody writes them any more, short, and without the machine's folders."""

import subprocess
import sys

import pytest

from lora_registry.errors import StorageFull
from processes import environment
from service.jobs import process_logs
from service.jobs.errors import JobNotFound
from service.jobs.process_logs import joined, left_behind, opened, readable, trim
from work_store import new


@pytest.fixture
def path(tmp_path):
    return tmp_path / "job-x" / "train.log"


def log_of(table, job_id):
    with table.open(job_id, "log.txt")[1] as file:
        return file.read().decode()


def a_process(path, code):
    """One that has the log for its output, and ends when its input does."""
    with opened(path) as output:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=output, stderr=output
        )


def test_a_log_keeps_its_last_lines_and_its_writer_need_not_know(tmp_path):
    path = tmp_path / "train.log"
    with path.open("ab", buffering=0) as writer:
        for number in range(1000):
            writer.write(f"line {number}\n".encode())
        trim(path, 10**6)
        assert path.stat().st_size > 8000
        trim(path, 1000)
        writer.write(b"and one more\n")
    lines = path.read_text().splitlines()
    assert (lines[0], lines[-2:]) == ("[...]", ["line 999", "and one more"])
    assert path.stat().st_size < 600


def test_a_log_is_left_behind_once_its_process_has_been_killed_and_no_sooner(path):
    process = a_process(path, "print('at work', flush=True); input()")
    with pytest.raises(BlockingIOError), left_behind(path):
        pass
    process.kill()
    process.communicate()
    with left_behind(path) as written:
        assert path.exists()
    assert written in (b"", b"at work\n")
    assert not path.parent.exists()


def test_a_process_of_a_process_may_have_more_to_say(path):
    # The child of the child lives on with its output, as a worker that was started and not waited for.
    code = f"import subprocess; subprocess.Popen([{sys.executable!r}, '-c', 'input()'])"
    process = a_process(path, code)
    process.wait()
    with pytest.raises(BlockingIOError), left_behind(path):
        pass
    process.stdin.close()


def test_a_log_stays_where_it_could_not_be_kept(path):
    with opened(path) as output:
        output.write(b"dear diary\n")
    with pytest.raises(StorageFull), left_behind(path):
        raise StorageFull
    assert path.read_bytes() == b"dear diary\n"


def test_a_log_that_is_being_kept_is_not_opened_at_that_moment(path):
    with opened(path) as output:
        output.write(b"dear diary\n")
    with left_behind(path), pytest.raises(BlockingIOError), opened(path):
        pass
    with opened(path) as output:
        output.write(b"a new one\n")
    assert path.read_bytes() == b"a new one\n"


def test_a_process_whose_log_cannot_be_written_does_its_work():
    code = (
        "import sys\nfrom service.jobs.process_logs import forgiving\nwith forgiving():\n"
        "    print('at work', flush=True)\n    sys.stderr.write('x' * 100_000)\nsys.exit(7)"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], env=environment(), stdout=full, stderr=full)
    assert done.returncode == 7


def test_of_a_long_log_the_end_is_left_in_whole_lines(path, monkeypatch):
    monkeypatch.setattr(process_logs, "KEPT_BYTES", 100)
    with opened(path) as output:
        output.write(b"".join(b"line %d\n" % number for number in range(1000)))
    with left_behind(path) as written:
        assert len(written) == 101
    lines = joined(b"", written, 100).decode().splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("line 989", "line 999", 11)


def test_what_is_joined_is_bounded_and_nothing_is_there_twice():
    assert joined(b"one\n", b"two\n") == b"one\ntwo\n"
    assert joined(b"one\ntwo\n", b"two\n") == b"one\ntwo\n"
    assert joined(b"one\ntwo\n", b"three\n", 11) == b"two\nthree\n"
    assert joined(b"", b"x" * 12, 11) == b"x" * 11


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('  File "/opt/venv/lib/python3.12/run.py", line 3, in run', '  File "…/run.py", line 3, in run'),
        ("no such file: '/home/alice/data/work.sqlite3'", "no such file: '…/work.sqlite3'"),
        ("folder=/srv/darkroom/data", "folder=…/data"),
        ("see https://example.org/a/page and service/jobs/table.py", None),
        ("3/4 of the steps, 12 it/s, and/or none", None),
    ],
)
def test_folders_of_the_machine_are_left_out(written, told):
    assert readable(written.encode()).decode() == (told or written)


def test_bytes_that_are_no_text_are_replaced():
    assert readable(b"\xff\xfe caf\xc3\xa9\n").decode() == "\ufffd\ufffd café\n"


def test_a_kept_log_is_a_file_of_the_job_that_grows_with_each_process(table):
    job_id = new(table)
    held = table.claim(job_id, holder="here 1 1", lease_seconds=60)
    held.progress(step=4)
    table.keep_log(job_id, b"the first\n")
    table.keep_log(job_id, b"the second\n")
    table.keep_log(job_id, b"the second\n")  # its file was still there, so it was kept again
    (artifact,) = table.get(job_id).artifacts
    assert (artifact.name, artifact.media_type, artifact.step) == ("log.txt", "text/plain; charset=utf-8", 4)
    assert log_of(table, job_id) == "the first\nthe second\n"
    assert [event.type for event in table.events(job_id)].count("artifact") == 2


def test_a_log_is_kept_whoever_has_the_job_and_changes_nothing_else_of_it(table):
    job_id = new(table)
    first = table.claim(job_id, holder="here 1 1", lease_seconds=0)
    second = table.claim(job_id, holder="there 1 1", lease_seconds=60)
    before = table.get(job_id)
    table.keep_log(job_id, b"of the first\n")
    assert table.get(job_id).model_copy(update={"artifacts": []}) == before
    second.log("still mine")
    second.succeeded("fox@1", "sha256:" + "a" * 64)
    table.keep_log(job_id, b"of the second\n")
    assert table.get(job_id).state == "succeeded"
    assert log_of(table, job_id) == "of the first\nof the second\n"
    assert first.fence < second.fence


def test_a_kept_log_survives_a_collection_and_a_lost_one_is_begun_anew(table):
    job_id = new(table)
    table.keep_log(job_id, b"the first\n")
    table.gc(grace_seconds=-1e12)
    assert log_of(table, job_id) == "the first\n"
    (artifact,) = table.get(job_id).artifacts
    table._files.delete(artifact.digest)
    table.keep_log(job_id, b"the second\n")
    assert log_of(table, job_id) == "the second\n"


def test_a_full_disk_leaves_the_log_that_was_there(table, armed):
    job_id = new(table)
    table.keep_log(job_id, b"the first\n")
    before = table.get(job_id), table.events(job_id)
    armed("blob.rename=full")
    with pytest.raises(StorageFull):
        table.keep_log(job_id, b"the second\n")
    armed("")
    assert (table.get(job_id), table.events(job_id)) == before
    assert log_of(table, job_id) == "the first\n"


def test_a_log_without_a_word_is_no_file(table):
    job_id = new(table)
    table.keep_log(job_id, b"")
    assert table.get(job_id).artifacts == []


def test_a_log_of_no_job_is_refused(table):
    with pytest.raises(JobNotFound):
        table.keep_log("job-x", b"dear diary\n")
