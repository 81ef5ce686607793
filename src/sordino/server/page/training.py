"""The routes of the page's Train: texts, what they cost, runs."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from sordino import formats
from sordino.errors import SordinoError
from sordino.library.names import safe_name
from sordino.server.errors import Refused, refused
from sordino.server.page.training_settings import Argument, Asked, flags_of, model_of
from sordino.server.serving import state_of
from sordino.training.events import METRICS
from sordino.training.failure import Failure
from sordino.training.job_files import Job
from sordino.training.queue import Jobs
from sordino.training.report import HTML

router = APIRouter(prefix="/ui", include_in_schema=False)

# A report is a page of its own, made from texts of anybody's: it may show itself and nothing else.
_REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"


@router.post("/texts")
def texts(
    request: Request, files: Annotated[list[UploadFile], File()], run: Annotated[str, Form()] = ""
) -> dict[str, Any]:
    """Keep files for a run that is to be: of a new draft, or of `run`."""
    jobs = _jobs(request)
    read = [(file.filename or "text.txt", file.file.read()) for file in files]
    try:
        if not run:
            return _told(jobs, jobs.new("", read))
        job = jobs.get(run)
        if jobs.state(job) != "draft":
            raise Refused(409, "this run was begun already")
        jobs.files.add_texts(job, read)
        return _told(jobs, job)
    except SordinoError as error:
        raise refused(error) from error


@router.delete("/jobs/{name}/texts")
def remove_text(request: Request, name: str, file: str) -> dict[str, Any]:
    """Take the text `file` out of a draft."""
    jobs, job = _job(request, name)
    try:
        jobs.remove_text(job, file)
    except SordinoError as error:
        raise refused(error, field="file") from error
    return _told(jobs, job)


@router.post("/jobs/{name}/again")
def again(request: Request, name: str) -> dict[str, Any]:
    """A draft with the texts and the settings of a run."""
    jobs, job = _job(request, name)
    try:
        return _told(jobs, jobs.again(job))
    except SordinoError as error:
        raise refused(error) from error


@router.post("/jobs/{name}/look")
def look(request: Request, name: str, asked: Asked) -> dict[str, Any]:
    jobs, job = _job(request, name)
    try:
        return _seen(jobs, jobs.look(job, flags_of(request, jobs, asked.settings), model=model_of(request, asked)))
    except SordinoError as error:
        raise refused(error) from error


@router.get("/jobs/{name}/look")
def looked(request: Request, name: str) -> dict[str, Any]:
    jobs, job = _job(request, name)
    return _seen(jobs, job)


@router.post("/jobs/{name}/train")
def train(request: Request, name: str, asked: Asked) -> dict[str, Any]:
    """Into the queue."""
    jobs, job = _job(request, name)
    try:
        settings = asked.settings.model_dump(exclude_defaults=True)
        flags = flags_of(request, jobs, asked.settings)
        model = model_of(request, asked)
        return _told(jobs, jobs.train(job, model=model, name=asked.settings.name, flags=flags, settings=settings))
    except SordinoError as error:
        raise refused(error) from error


@router.get("/jobs")
def all_of_them(request: Request) -> list[dict[str, Any]]:
    """Newest first, drafts left out."""
    jobs = _jobs(request)
    return [_told(jobs, job) for job in jobs.files.all() if jobs.state(job) != "draft"]


@router.get("/jobs/{name}")
def one(request: Request, name: str, after: int = 0) -> dict[str, Any]:
    """With the events of its metrics.jsonl from the one numbered `after` on."""
    jobs, job = _job(request, name)
    try:
        lines = (jobs.files.run_folder(job) / METRICS).read_text(encoding="utf-8").split("\n")[:-1]
    except OSError:
        lines = []
    # A run that goes on may have fewer than it had: back to its checkpoint. The page begins anew then.
    after = after if 0 <= after <= len(lines) else 0
    return {**_told(jobs, job), "after": after, "events": [json.loads(line) for line in lines[after:]]}


@router.post("/jobs/{name}/stop")
def stop(request: Request, name: str) -> dict[str, Any]:
    jobs, job = _job(request, name)
    try:
        return _told(jobs, jobs.stop(job))
    except SordinoError as error:
        raise refused(error) from error


@router.post("/jobs/{name}/resume")
def resume(request: Request, name: str) -> dict[str, Any]:
    jobs, job = _job(request, name)
    try:
        return _told(jobs, jobs.go_on(job))
    except SordinoError as error:
        raise refused(error) from error


@router.delete("/jobs/{name}")
def remove(request: Request, name: str) -> dict[str, Any]:
    jobs, job = _job(request, name)
    try:
        jobs.remove(job)
    except SordinoError as error:
        raise refused(error) from error
    return {}


class Kept(BaseModel):
    """name: in the library; by default one made from the run's."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Argument, Field(max_length=200)] = ""


@router.post("/jobs/{name}/keep")
def keep(request: Request, name: str, said: Kept) -> dict[str, Any]:
    """Copy the result into the library. Asked for again it is there already."""
    jobs, job = _job(request, name)
    voices = state_of(request).voices
    try:
        prompt = formats.read(jobs.files.result(job))
        twin = voices.library.twin(prompt)
        if twin is not None and not said.name:
            return {"id": twin.name}
        own = safe_name(job.name)
        taken = {voice.entry.name for voice in voices.all()}
        free = (one for one in (own, *(f"{own}-{number}" for number in range(2, 1000))) if one not in taken)
        entry = voices.library.add(prompt, name=said.name or next(free, own))
    except SordinoError as error:
        raise refused(error) from error
    voices.refresh()
    return {"id": entry.name}


@router.get("/jobs/{name}/file")
def file(request: Request, name: str) -> FileResponse:
    jobs, job = _job(request, name)
    if not jobs.files.result(job).is_file():
        raise Refused(404, "the run has no result yet")
    return FileResponse(jobs.files.result(job), filename=f"{job.name or 'voice'}.zip", media_type="application/zip")


@router.get("/jobs/{name}/report")
def report(request: Request, name: str) -> Response:
    jobs, job = _job(request, name)
    path = jobs.files.run_folder(job) / HTML
    if not path.is_file():
        raise Refused(404, "the run has no report yet")
    return FileResponse(path, headers={"Content-Security-Policy": _REPORT_POLICY, "X-Content-Type-Options": "nosniff"})


@router.get("/jobs/{name}/log")
def log(request: Request, name: str) -> Response:
    jobs, job = _job(request, name)
    path = jobs.files.place(job.id) / "log.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return Response(text, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


def _told(jobs: Jobs, job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "model": job.model,
        "created": job.created,
        "state": jobs.state(job),
        **_failed(jobs.failure(job)),
        "steps": jobs.files.steps(job),
        "settings": job.settings,
        "checkpoint": jobs.can_go_on(job),
        "report": (jobs.files.run_folder(job) / HTML).is_file(),
        "texts": jobs.files.text_names(job),
    }


def _seen(jobs: Jobs, job: Job) -> dict[str, Any]:
    told = jobs.measuring.told(job)
    failure = told.pop("failure")
    return {**told, **_failed(failure)}


def _failed(failure: Failure | None) -> dict[str, Any]:
    """error: a line, with flags as on the command line. named: the settings that it speaks of. where: the text, file or flag."""
    if failure is None:
        return {"error": "", "named": [], "where": ""}
    return {"error": failure.message, "named": failure.settings, "where": failure.where}


def _job(request: Request, name: str) -> tuple[Jobs, Job]:
    jobs = _jobs(request)
    try:
        return jobs, jobs.get(name)
    except SordinoError as error:
        raise Refused(404, error.message, field="name") from error


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs
