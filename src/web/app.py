"""The server's paths. What they do stands in asking.py, jobs.py and graphs.py."""

import json
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Literal

from fastapi import Body, FastAPI, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.background import BackgroundTask

from common.errors import UserError
from common.files import to_line
from kg.export import FORMATS
from kg.wordings import ask_for, split_names
from prediction.jobs import run_name
from prediction.live import Busy
from web import forms
from web.asking import Model, answer, as_events, last_of, make_record
from web.graphs import SHOWN, Graphs
from web.guard import Door, Guard
from web.jobs import FILES, Full, Jobs, hide

HERE = Path(__file__).parent / "static"
VENDOR = Path(__file__).parents[1] / "kg" / "vendor"  # Cytoscape.js and its licence
ERRORS = {
    code: {"model": forms.Error, "description": text}
    for code, text in {
        400: "what was asked cannot be done, and why",
        401: "no token, or a wrong one",
        403: "from another site's page",
        413: "too long",
        421: "not known by that name",
        429: "too many ask; come again",
        503: "the model has failed",
    }.items()
}
TYPE = "Content-Type"
Identity = Annotated[str, Query(max_length=1000, description="the record's id, as JSON")]
Limit = Annotated[int, Query(ge=1, le=2000)]
Short = Annotated[str, Query(max_length=1000)]


class Json(JSONResponse):
    """JSON that half a surrogate pair, as a request may hold it, does not break."""

    def render(self, content) -> bytes:
        return to_line(content).encode()


def make_app(model: Model, jobs: Jobs, graphs: Graphs, door: Door, examples: list[dict]) -> FastAPI:
    """The application, behind its door. It starts the threads of model and jobs, and ends them."""

    @asynccontextmanager
    async def lifespan(app):
        model.server.start()
        jobs.start()
        yield
        jobs.ending = True
        model.server.close()
        jobs.close()
        graphs.close()

    app = FastAPI(
        title="Knowledge graphs from texts",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        separate_input_output_schemas=False,
        default_response_class=Json,
    )

    @app.exception_handler(RequestValidationError)
    async def say_field(request: Request, error: RequestValidationError):
        """Where, and what was expected; not what was sent."""
        if [one["loc"] for one in error.errors()] == [("body",)] and "json" not in request.headers.get(TYPE, ""):
            return Json({"detail": f"the body is not said to be JSON; send the header {TYPE}: application/json"}, 422)
        return Json({"detail": [{name: one[name] for name in ("loc", "msg", "type")} for one in error.errors()]}, 422)

    @app.exception_handler(UserError)
    async def say_what(request: Request, error: UserError):
        code = 429 if isinstance(error, Busy | Full) else 503 if model.server.broken else 400
        headers = {"Retry-After": "5"} if code == 429 else None
        return Json({"detail": hide(str(error), jobs.folder.parent)}, code, headers)

    @app.post("/api/extract", response_model=forms.Answer, tags=["ask"])
    async def extract(question: forms.Question, request: Request, accept: Annotated[str, Header()] = ""):
        """The triples of a text. With `Accept: text/event-stream` they come as they are made: the events start, text
        (what the model writes, by part of the text), triples, part, and at last done, with the whole answer, or error.
        """
        if len(question.text) > model.max_text:
            detail = f"the text has {len(question.text):,} characters; {model.max_text:,} are the most (--max_text)"
            return Json({"detail": detail}, 413)
        record = make_record(model, question)
        events = answer(model, record)
        if "text/event-stream" in accept:
            first = await anext(events)  # what is refused has a status of its own
            return StreamingResponse(as_events(events, first), media_type="text/event-stream")
        found = await last_of(events, request.is_disconnected)
        return Response(status_code=499) if found is None else found

    @app.get("/api/health", tags=["ask"])
    async def health():
        """Whether the model answers, and how many ask."""
        state = model.server.state()
        about = {"status": "failed" if state["broken"] else "ready", "engine": model.plan.engine}
        answer = about | {"model": run_name(model.plan), **state}
        return Json(answer, 503 if state["broken"] else 200)

    @app.get("/api/options", tags=["ask"])
    async def options():
        """What the page offers: topics with their relations, examples, bounds, the forms of a graph's file."""
        bounds = {"text": model.max_text, "upload": door.most_upload}
        return {"topics": model.topics, "examples": examples, "bounds": bounds, "formats": FORMATS}

    @app.post("/api/jobs", status_code=202, tags=["jobs"])
    async def add_job(
        file: Annotated[UploadFile, File(description="records: .json, .jsonl, .csv (column text), .txt (one a line)")],
        relations: Annotated[
            str, Form(max_length=10_000, description="for records without instruction: 位于,类型")
        ] = "",
        wording: Annotated[forms.Wording, Form()] = "contest",
    ):
        """Answer a file of records. Records with instruction and input are asked as they are."""
        names = split_names(relations)
        instruction = ask_for(names, wording) if names else None
        return await run_in_threadpool(_add, jobs, file, instruction)

    @app.get("/api/jobs", tags=["jobs"])
    async def list_jobs():
        """All jobs, the newest first."""
        return jobs.list_all()

    @app.get("/api/jobs/{identity}", responses={404: {"model": forms.Error}}, tags=["jobs"])
    async def get_job(identity: str):
        """A job: its status, what is done, how long the rest may take, its score."""
        job = jobs.find(identity)
        return _missing() if job is None else jobs.describe(job)

    @app.delete("/api/jobs/{identity}", responses={404: {"model": forms.Error}}, tags=["jobs"])
    async def remove_job(identity: str):
        """Remove a job that is not at work, and its files."""
        job = jobs.find(identity)
        if job is None:
            return _missing()
        await run_in_threadpool(jobs.remove, job)
        return {"removed": identity}

    @app.post("/api/jobs/{identity}/{action}", responses={404: {"model": forms.Error}}, tags=["jobs"])
    async def turn_job(identity: str, action: Literal["stop", "resume", "graph"]):
        """stop a job, resume it, or bring what it found into the graph."""
        job = jobs.find(identity)
        if job is None:
            return _missing()
        if action == "graph":
            return await run_in_threadpool(graphs.bring_job, jobs, job)
        return await run_in_threadpool(jobs.stop if action == "stop" else jobs.go_on, job)

    @app.get("/api/jobs/{identity}/files/{kind}", responses={404: {"model": forms.Error}}, tags=["jobs"])
    async def get_file(identity: str, kind: Literal[tuple(FILES)]):
        """A file of a job."""
        job = jobs.find(identity)
        file = job and jobs.file_of(job, kind)
        return _download(file, f"{Path(job['name']).stem}-{file.name}") if file else _missing()

    @app.get("/api/graph", tags=["graph"])
    async def view(name: Short | None = None, hops: Annotated[int, Query(ge=1, le=4)] = 1, limit: Limit = SHOWN):
        """What is around an entity; without a name the entities in most triples."""
        return await run_in_threadpool(graphs.view, name, hops, limit)

    @app.get("/api/graph/names", tags=["graph"])
    async def names(part: Short):
        """Entities whose names hold a text."""
        return await run_in_threadpool(graphs.names, part)

    @app.get("/api/graph/stats", tags=["graph"])
    async def stats():
        """Counts of what the graph holds."""
        return await run_in_threadpool(graphs.stats)

    @app.get("/api/graph/record", tags=["graph"])
    async def record(run: Short, id: Identity, collection: Short = ""):
        """A record that triples come from: its text and all its triples."""
        return await run_in_threadpool(graphs.record, run, collection, _read_id(id))

    @app.post("/api/graph/records", tags=["graph"])
    async def keep(kept: forms.Kept):
        """Bring triples of a text into the graph."""
        triples = [tuple(triple) for triple in kept.triples]
        return await run_in_threadpool(graphs.keep, run_name(model.plan), kept.text, kept.topic, triples)

    @app.get("/api/graph/files/{form}", tags=["graph"])
    async def export(form: Literal[FORMATS]):
        """The graph as a file."""
        file, name, scratch = await run_in_threadpool(graphs.export, form)
        return _download(file, name, BackgroundTask(shutil.rmtree, scratch, ignore_errors=True))

    @app.post("/api/corrections", tags=["graph"])
    async def correct(correction: forms.Correction):
        """Accept, reject, correct or add triples of a text. The graph follows; a text that is judged completely becomes
        a training record.
        """
        entities = (model.topics.get(correction.topic) or {}).get("entities", [])
        said = correction.model_dump(exclude={"triples"}) | {"entities": entities}
        said["triples"] = [[one.verdict, one.triple, one.to] for one in correction.triples]
        if any(one.verdict == "correct" and one.to is None for one in correction.triples):
            raise UserError("a triple is to be corrected, but `to` is missing")
        names = [*correction.relations, *((one.to or one.triple)[1] for one in correction.triples)]
        ask_for(list(dict.fromkeys(names))[:100], correction.wording, entities)  # which refuses odd names
        return await run_in_threadpool(graphs.judge, said)

    @app.post("/api/verdicts", tags=["graph"])
    async def verdicts(text: Annotated[forms.Text, Body(embed=True)]):
        """What was said of the triples of a text."""
        return await run_in_threadpool(graphs.verdicts, text)

    @app.get("/api/corrections", responses={404: {"model": forms.Error}}, tags=["graph"])
    async def corrections():
        """Texts that are judged completely, as training records (JSON lines, for --train_file)."""
        file = graphs.corrections()
        return _download(file, file.name) if file else _missing()

    @app.get("/", include_in_schema=False)
    async def page():
        return FileResponse(HERE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs():
        return FileResponse(HERE / "docs.html")

    app.mount("/static/vendor", StaticFiles(directory=VENDOR), name="vendor")
    app.mount("/static", StaticFiles(directory=HERE), name="static")
    app.add_middleware(Guard, door=door)
    return app


def _add(jobs: Jobs, file: UploadFile, instruction: str | None) -> dict:
    with NamedTemporaryFile(dir=jobs.folder, prefix="upload-", suffix=".tmp") as upload:
        shutil.copyfileobj(file.file, upload)
        upload.flush()
        return jobs.add(Path(upload.name), file.filename or "", instruction)


def _read_id(text: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError('id: expected JSON, such as 7 or "7"') from None


def _download(file: Path, name: str, after: BackgroundTask | None = None) -> FileResponse:
    """A file to be saved, never shown."""
    return FileResponse(file, filename=name, media_type="application/octet-stream", background=after)


def _missing() -> Json:
    return Json({"detail": "there is no such thing"}, 404)
