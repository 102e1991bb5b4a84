"""Files that people have uploaded, answered one after the other; what ends the server loses nothing of them."""

import re
import shutil
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

from common.errors import UserError, reason_of, say
from common.files import read_json, to_line, write_lines
from prediction import jobs as work
from web.asking import Model

STATE = "job.json"
WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"
FILES = {  # that can be had of a job -> their names
    "predictions": work.PREDICTIONS,
    "submission": work.SUBMISSION,
    "graph": work.GRAPH,
    "score": work.SCORE,
}
IDENTITY = re.compile(r"[0-9a-f]{32}")


class Full(UserError):
    """More jobs are not finished than may be."""


class Jobs:
    """The jobs of a folder, each in a folder of its own, and the thread that works at them, the oldest first."""

    def __init__(self, folder: Path, model: Model, most: int):
        self.folder, self.model, self.most = folder, model, most
        self.lock, self.ending = threading.Condition(), False
        self.progress: dict[str, tuple[int, int, float, int]] = {}  # done, questions, when it began, done then
        folder.mkdir(parents=True, exist_ok=True)
        self.jobs = {job["id"]: job for job in self._read_all()}
        self.thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def close(self) -> None:
        with self.lock:
            self.ending = True
            self.lock.notify_all()
        self.thread.join(10)

    def add(self, upload: Path, name: str, instruction: str | None) -> dict:
        """A job made of an uploaded file; UserError for one that cannot be read, Full when too many wait."""
        name = Path(name).name.encode("utf-8", "replace").decode()[-80:]
        with self.lock:
            if sum(job["status"] in (WAITING, RUNNING) for job in self.jobs.values()) >= self.most:
                raise Full(f"{self.most} jobs are not finished yet; wait for one, or stop one")
        identity = uuid4().hex
        place = self.folder / identity
        place.mkdir()
        try:
            records = work.take_upload(upload, name, instruction, place)
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            job = {"id": identity, "name": name, "created": now, "status": WAITING, "records": records}
            write_lines(place / STATE, [to_line(job)])
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        with self.lock:
            self.jobs[identity] = job
            self.lock.notify_all()
        return self.describe(job)

    def find(self, identity: str) -> dict | None:
        return self.jobs.get(identity)

    def list_all(self) -> list[dict]:
        """The newest first."""
        return [self.describe(job) for job in sorted(self.jobs.values(), key=lambda job: job["created"], reverse=True)]

    def describe(self, job: dict) -> dict:
        """A job, how far it is, and how long the rest may take (seconds; None: not known yet)."""
        found = {**job, "done": 0, "questions": None, "seconds_left": None}
        found["files"] = [kind for kind, name in FILES.items() if (self.folder / job["id"] / name).is_file()]
        progress = self.progress.get(job["id"])  # once: the thread that works takes it away
        if progress and job["status"] == RUNNING:
            done, questions, began, first = progress
            found |= {"done": done, "questions": questions}
            if done > first:
                found["seconds_left"] = round((time.time() - began) * (questions - done) / (done - first), 1)
        return found

    def file_of(self, job: dict, kind: str) -> Path | None:
        """A file of a job; None: it is not there."""
        file = self.folder / job["id"] / FILES[kind]
        return file if file.is_file() else None

    def stop(self, job: dict) -> dict:
        """Stop a job; what it has answered is kept, and `go_on` goes on."""
        return self._turn(job, (WAITING, RUNNING), STOPPED)

    def go_on(self, job: dict) -> dict:
        return self._turn(job, (STOPPED, FAILED), WAITING)

    def remove(self, job: dict) -> None:
        """UserError for one that is at work."""
        with self.lock:
            if job["status"] in (WAITING, RUNNING):
                raise UserError("the job is not finished; stop it first")
            self.jobs.pop(job["id"], None)
        shutil.rmtree(self.folder / job["id"], ignore_errors=True)

    def bring_into(self, job: dict, store: Path) -> dict:
        """Bring a finished job's triples into the graph; what was counted."""
        if job["status"] != FINISHED:
            raise UserError("the job is not finished")
        return work.bring_into(self.folder / job["id"], store, f"{job['name']} {job['id'][:6]}")

    def _turn(self, job: dict, before: tuple, after: str) -> dict:
        with self.lock:
            if job["status"] not in before:
                raise UserError(f"the job is {job['status']}")
            self._note(job, status=after, error=None)
            self.lock.notify_all()
        return self.describe(job)

    def _note(self, job: dict, **more) -> None:
        job.update(more)
        write_lines(self.folder / job["id"] / STATE, [to_line(job)])

    def _read_all(self):
        """The jobs of the folder; those that were at work wait again."""
        for place in sorted(self.folder.iterdir()):
            if not IDENTITY.fullmatch(place.name) or not (place / STATE).is_file():
                continue
            try:
                job = read_json(place / STATE, "delete the job's folder")
            except UserError as error:
                say(f"warning: {error}")
                continue
            yield job | {"status": WAITING if job["status"] == RUNNING else job["status"]}

    def _work(self) -> None:
        while True:
            with self.lock:
                while not self.ending and not any(job["status"] == WAITING for job in self.jobs.values()):
                    self.lock.wait()
                if self.ending:
                    return
                waiting = [job for job in self.jobs.values() if job["status"] == WAITING]
                job = min(waiting, key=lambda job: (job["created"], job["id"]))
                self._note(job, status=RUNNING)
            self._run(job)

    def _run(self, job: dict) -> None:
        place = self.folder / job["id"]

        def told(done: int, questions: int) -> None:
            _, _, began, first = self.progress.get(job["id"], (0, 0, time.time(), done))
            self.progress[job["id"]] = (done, questions, began, first)

        def stop() -> bool:
            return self.ending or job["status"] == STOPPED

        try:
            model = self.model
            found = work.run_job(model.plan, model.server, model.window, place, told, stop)
            end = {"status": FINISHED, "error": None, **found}
        except work.Stopped:
            lost = job["status"] == RUNNING and not self.ending  # nobody stopped it: the model has failed
            end = {"status": FAILED, "error": model.server.broken} if lost else {}  # else as it was turned
        except UserError as error:
            end = {"status": FAILED, "error": hide(str(error), self.folder)}
        except Exception as error:  # noqa: BLE001 - whatever one job raises, the others go on
            end = {"status": FAILED, "error": hide(reason_of(error), self.folder)}
        self.progress.pop(job["id"], None)
        with self.lock:
            if job["id"] in self.jobs:
                self._note(job, **end)
            else:  # removed meanwhile; what was written since is in a folder that was made anew
                shutil.rmtree(place, ignore_errors=True)


def hide(message: str, folder: Path) -> str:
    """A message without paths of this machine."""
    message = message.replace(f"{folder}/", "").replace(str(folder), "")
    return re.sub(r"(?<![\w.])/(?:[\w.@+-]+/)+", "…/", message)
