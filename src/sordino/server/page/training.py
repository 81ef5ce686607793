"""Routes of the page Train: texts, what training on them costs, runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import Field

from sordino import formats
from sordino.errors import SordinoError
from sordino.library.names import safe_name
from sordino.server.bodies import StrictBody
from sordino.server.errors import Refused, refusing
from sordino.server.page.training_settings import Argument, RunRequest, flags_of, form, model_of
from sordino.server.serving import state_of
from sordino.training.events import METRICS
from sordino.training.failure import Failure
from sordino.training.job_files import QueuedJob
from sordino.training.progress_file import Activity
from sordino.training.queue import Jobs
from sordino.training.report import HTML, RESULTS

router = APIRouter(prefix="/ui", include_in_schema=False)

# A report is made from texts of any origin: it may show itself and load nothing else.
_REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


JobsOf = Annotated[Jobs, Depends(_jobs)]


def _job(jobs: JobsOf, name: str) -> QueuedJob:
    try:
        return jobs.get(name)
    except SordinoError as error:
        raise Refused(404, error.message, field="name") from error


JobOf = Annotated[QueuedJob, Depends(_job)]


@router.get("/training-form")
def training_form() -> dict[str, Any]:
    return form()


@router.post("/texts")
def texts(jobs: JobsOf, files: Annotated[list[UploadFile], File()], run: Annotated[str, Form()] = "") -> dict[str, Any]:
    """Store texts: in the draft `run`, or in a new one."""
    contents = [(file.filename or "text.txt", file.file.read()) for file in files]
    if not run:
        return _run(jobs, jobs.new("", contents))
    job = jobs.get(run)
    if jobs.state(job) != "draft":
        raise Refused(409, "this run has started already")
    jobs.files.add_texts(job, contents)
    return _run(jobs, job)


@router.delete("/jobs/{name}/texts")
def remove_text(jobs: JobsOf, job: JobOf, file: str) -> dict[str, Any]:
    """Remove the text `file` from a draft."""
    with refusing("file"):
        jobs.remove_text(job, file)
    return _run(jobs, job)


@router.post("/jobs/{name}/again")
def again(jobs: JobsOf, job: JobOf) -> dict[str, Any]:
    """A draft with the texts and the settings of a run."""
    return _run(jobs, jobs.again(job))


@router.post("/jobs/{name}/look")
def look(request: Request, jobs: JobsOf, job: JobOf, body: RunRequest) -> dict[str, Any]:
    """Start measuring the texts of a draft and what training on them costs."""
    flags = flags_of(request, jobs, body.settings)
    return _measured(jobs, jobs.measure(job, flags, model=model_of(request, body.model)))


@router.get("/jobs/{name}/look")
def looked(jobs: JobsOf, job: JobOf) -> dict[str, Any]:
    """What is measured so far."""
    return _measured(jobs, job)


@router.post("/jobs/{name}/train")
def train(request: Request, jobs: JobsOf, job: JobOf, body: RunRequest) -> dict[str, Any]:
    """Put a draft into the queue."""
    settings = body.settings.model_dump(exclude_defaults=True)
    flags = tuple(flags_of(request, jobs, body.settings))
    model = model_of(request, body.model)
    return _run(jobs, jobs.train(job, model=model, name=body.settings.name, flags=flags, settings=settings))


class LongTextRequest(StrictBody):
    """What stands in front of a chat, and the character's name."""

    name: Annotated[Argument, Field(max_length=300)] = ""
    text: Annotated[Argument, Field(max_length=1_000_000)]


@router.post("/distil")
def distil(request: Request, jobs: JobsOf, body: LongTextRequest) -> dict[str, Any]:
    """Queue a run that turns a text into a soft prompt for the model that is served."""
    name = body.name.strip() or "card"
    job = jobs.new("", [("text.txt", body.text.encode())])
    return _run(jobs, jobs.train(job, model=model_of(request), name=name, flags=(f"--name={name}",), command="distil"))


@router.get("/jobs")
def all_runs(jobs: JobsOf) -> list[dict[str, Any]]:
    """Newest first, without drafts."""
    return [_run(jobs, job) for job in jobs.files.all() if jobs.state(job) != "draft"]


@router.get("/jobs/{name}")
def one_run(jobs: JobsOf, job: JobOf, after: int = 0) -> dict[str, Any]:
    """A run, with the events of its metrics.jsonl from number `after` on, and its results once it has some."""
    try:
        lines = (jobs.files.run_folder(job) / METRICS).read_text(encoding="utf-8").split("\n")[:-1]
    except OSError:
        lines = []
    # A run that resumes from its checkpoint has fewer events than before: the page starts again from the first.
    after = after if 0 <= after <= len(lines) else 0
    events = [json.loads(line) for line in lines[after:]]
    return {**_run(jobs, job), "after": after, "events": events, "results": _results(jobs, job)}


@router.post("/jobs/{name}/stop")
def stop(jobs: JobsOf, job: JobOf) -> dict[str, Any]:
    return _run(jobs, jobs.stop(job))


@router.post("/jobs/{name}/resume")
def resume(jobs: JobsOf, job: JobOf) -> dict[str, Any]:
    return _run(jobs, jobs.go_on(job))


@router.delete("/jobs/{name}")
def remove(jobs: JobsOf, job: JobOf) -> dict[str, Any]:
    jobs.remove(job)
    return {}


class LibraryName(StrictBody):
    """name: in the library; by default one made from the run's."""

    name: Annotated[Argument, Field(max_length=200)] = ""


@router.post("/jobs/{name}/install")
def install(request: Request, jobs: JobsOf, job: JobOf, body: LibraryName) -> dict[str, Any]:
    """Copy the result into the library, unless it is there already."""
    prompts = state_of(request).prompts
    prompt = formats.read_single(jobs.files.result(job))
    twin = prompts.library.twin(prompt)
    if twin is not None and not body.name:
        return {"id": twin.name}
    own = safe_name(job.name)
    taken = {one.entry.name for one in prompts.all()}
    free = (one for one in (own, *(f"{own}-{number}" for number in range(2, 1000))) if one not in taken)
    entry = prompts.library.add(prompt, name=body.name or next(free, own))
    prompts.refresh()
    return {"id": entry.name}


@router.get("/jobs/{name}/file")
def file(jobs: JobsOf, job: JobOf) -> FileResponse:
    if not jobs.files.result(job).is_file():
        raise Refused(404, "the run has no result yet")
    result = jobs.files.result(job)
    return FileResponse(
        result, filename=result.name.replace("voice", job.name or "voice", 1), media_type="application/zip"
    )


@router.get("/jobs/{name}/report")
def report(jobs: JobsOf, job: JobOf) -> Response:
    path = jobs.files.run_folder(job) / HTML
    if not path.is_file():
        raise Refused(404, "the run has no report yet")
    return FileResponse(path, headers={"Content-Security-Policy": _REPORT_POLICY, "X-Content-Type-Options": "nosniff"})


@router.get("/jobs/{name}/log")
def log(jobs: JobsOf, job: JobOf) -> Response:
    path = jobs.files.place(job.id) / "log.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return Response(text, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


def _run(jobs: Jobs, job: QueuedJob) -> dict[str, Any]:
    """now: what it does besides its steps."""
    state = jobs.state(job)
    return {
        "id": job.id,
        "name": job.name,
        "model": job.model,
        "created": job.created,
        "state": state,
        **_failure(jobs.failure(job)),
        "steps": jobs.files.steps(job),
        "now": asdict(now) if state == "running" and (now := Activity.read(jobs.files.progress(job))) else None,
        "settings": job.settings,
        "command": job.command,
        "checkpoint": jobs.can_go_on(job),
        "report": (jobs.files.run_folder(job) / HTML).is_file(),
        "texts": jobs.files.text_names(job),
    }


def _results(jobs: Jobs, job: QueuedJob) -> dict[str, Any] | None:
    """Of a run that is done and measured: see `training.report`."""
    try:
        results: dict[str, Any] = json.loads((jobs.files.run_folder(job) / RESULTS).read_bytes())
    except (OSError, ValueError):
        return None
    return results


def _measured(jobs: Jobs, job: QueuedJob) -> dict[str, Any]:
    measured = jobs.measuring.state(job)
    failure = measured.pop("failure")
    return {**measured, **_failure(failure)}


def _failure(failure: Failure | None) -> dict[str, Any]:
    """error: one line, with flags as on the command line. named: the settings in it. where: the text, file or flag at fault."""
    if failure is None:
        return {"error": "", "named": [], "where": ""}
    return {"error": failure.message, "named": failure.settings, "where": failure.where}
