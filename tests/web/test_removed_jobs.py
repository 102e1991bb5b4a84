"""A job that is removed while its last files are written is gone, also after a restart."""

from types import SimpleNamespace

import pytest

from common.files import write_rows
from prediction import jobs as work
from web.jobs import FINISHED, Jobs


@pytest.mark.parametrize("removed", [True, False])
def test_a_job_that_was_stopped_and_removed_at_its_end_does_not_come_back(tmp_path, monkeypatch, removed):
    upload = tmp_path / "texts.txt"
    upload.write_text("钟楼位于旧城。\n", encoding="utf-8")
    model = SimpleNamespace(plan=None, server=None, window=0)
    jobs = Jobs(tmp_path / "jobs", model, 3)
    job = jobs.jobs[jobs.add(upload, upload.name, "抽取")["id"]]

    def run_job(plan, server, window, folder, told, stop):
        if removed:
            jobs.stop(job)
            jobs.remove(job)
        write_rows(folder / work.SUBMISSION, [])  # which makes the folder where it is not there
        return {"triples": 0}

    monkeypatch.setattr(work, "run_job", run_job)
    jobs._run(job)
    again = Jobs(tmp_path / "jobs", model, 3).list_all()
    assert [one["status"] for one in again] == ([] if removed else [FINISHED])
    assert (tmp_path / "jobs" / job["id"]).exists() != removed
