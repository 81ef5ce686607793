"""The routes of the page's Train: texts, what they cost, runs."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from sordino import formats
from sordino.errors import SordinoError
from sordino.library.names import safe_name
from sordino.server.errors import Refused, refused
from sordino.server.serving import Serving, state_of
from sordino.training.events import METRICS
from sordino.training.queue import Job, Jobs
from sordino.training.report import HTML

router = APIRouter(prefix="/ui", include_in_schema=False)

# A report is a page of its own, made from texts of anybody's: it may show itself and nothing else.
_REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
_Short = Annotated[str, Field(max_length=200)]
_Text = Annotated[str, Field(max_length=4000)]


class Settings(BaseModel):
    """What `sordino train` takes, by the same names; what is None is left to its defaults. start_from: a soft prompt of the
    library, or the result of a run ("run:ID"), to go on from.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: _Short = ""
    author: _Short = ""
    description: _Text = ""
    licence: _Short = ""
    tags: _Short = ""
    rating: Literal["", "general", "mature", "explicit"] = ""
    tokens: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    row_tokens: int | None = None
    lr: float | None = None
    find_lr: bool = False
    start_from: str = ""
    init: _Text | None = None
    method: Literal["plain", "residual"] | None = None
    placement: Literal["auto", "start", "after_bos"] | None = None
    warmup: float | None = None
    clip: float | None = None
    weight_decay: float | None = None
    average: float | None = None
    patience: int | None = None
    evaluate_every: int | None = None
    sample_every: int | None = None
    sample_text: _Text | None = None
    pass_tokens: int | None = None
    speaker: _Short | None = None
    seed: int | None = None
    no_samples: bool = False


class Asked(BaseModel):
    """model: the base model, by default the one that is served."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=4096)] = ""
    settings: Settings = Settings()


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
        jobs.add_texts(job, read)
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
        return jobs.looked(jobs.look(job, flags_of(request, jobs, asked.settings), model=_model(request, asked)))
    except SordinoError as error:
        raise refused(error) from error


@router.get("/jobs/{name}/look")
def looked(request: Request, name: str) -> dict[str, Any]:
    jobs, job = _job(request, name)
    return jobs.looked(job)


@router.post("/jobs/{name}/train")
def train(request: Request, name: str, asked: Asked) -> dict[str, Any]:
    """Into the queue."""
    jobs, job = _job(request, name)
    try:
        settings = asked.settings.model_dump(exclude_defaults=True)
        flags = flags_of(request, jobs, asked.settings)
        model = _model(request, asked)
        return _told(jobs, jobs.train(job, model=model, name=asked.settings.name, flags=flags, settings=settings))
    except SordinoError as error:
        raise refused(error) from error


@router.get("/jobs")
def all_of_them(request: Request) -> list[dict[str, Any]]:
    """Newest first, drafts left out."""
    jobs = _jobs(request)
    return [told for job in jobs.all() if (told := _told(jobs, job))["state"] != "draft"]


@router.get("/jobs/{name}")
def one(request: Request, name: str, after: int = 0) -> dict[str, Any]:
    """With the events of its metrics.jsonl from the one numbered `after` on."""
    jobs, job = _job(request, name)
    try:
        lines = (jobs.run_folder(job) / METRICS).read_text(encoding="utf-8").split("\n")[:-1]
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

    name: _Short = ""


@router.post("/jobs/{name}/keep")
def keep(request: Request, name: str, said: Kept) -> dict[str, Any]:
    """Copy the result into the library. Asked for again it is there already."""
    jobs, job = _job(request, name)
    voices = state_of(request).voices
    try:
        prompt = formats.read(jobs.result(job))
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
    if not jobs.result(job).is_file():
        raise Refused(404, "the run has no result yet")
    return FileResponse(jobs.result(job), filename=f"{job.name or 'voice'}.zip", media_type="application/zip")


@router.get("/jobs/{name}/report")
def report(request: Request, name: str) -> Response:
    jobs, job = _job(request, name)
    path = jobs.run_folder(job) / HTML
    if not path.is_file():
        raise Refused(404, "the run has no report yet")
    return FileResponse(path, headers={"Content-Security-Policy": _REPORT_POLICY, "X-Content-Type-Options": "nosniff"})


@router.get("/jobs/{name}/log")
def log(request: Request, name: str) -> Response:
    jobs, job = _job(request, name)
    path = jobs.place(job.id) / "log.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return Response(text, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


def flags_of(request: Request, jobs: Jobs, settings: Settings) -> list[str]:
    """The settings as flags of `sordino train`. Raises Refused."""
    said = settings.model_dump(exclude={"start_from"})
    said["name"] = settings.name or "voice"
    if settings.start_from.startswith("run:"):
        _, other = _job(request, settings.start_from.removeprefix("run:"))
        said["init"] = f"file:{jobs.result(other)}"
    elif settings.start_from:
        try:
            entry = state_of(request).voices.named(settings.start_from).entry
        except SordinoError as error:
            raise refused(error, field="start_from") from error
        if entry.components:
            raise Refused(400, "a run starts from one soft prompt, and this is a mixture", field="start_from")
        said["init"] = f"file:{entry.path}"
    flags = []
    for key, value in said.items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        # 0 is a value, and equal to False: it turns some settings off.
        elif value is not None and value is not False and value != "":
            flags.append(f"{flag}={value}")
    return flags


def _model(request: Request, asked: Asked) -> str:
    state = state_of(request)
    return asked.model or (state.base.name if isinstance(state, Serving) else "smollm2")


def _told(jobs: Jobs, job: Job) -> dict[str, Any]:
    state = jobs.state(job)
    steps = 0
    try:
        steps = json.loads((jobs.run_folder(job) / "settings.json").read_bytes())["config"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        steps = int(job.settings.get("steps") or 0)
    texts = jobs.place(job.id) / "texts"
    return {
        "id": job.id,
        "name": job.name,
        "model": job.model,
        "created": job.created,
        "state": state,
        "error": jobs.error(job),
        "steps": steps,
        "settings": job.settings,
        "checkpoint": jobs.can_go_on(job),
        "report": (jobs.run_folder(job) / HTML).is_file(),
        "texts": [path.relative_to(texts).as_posix() for path in sorted(texts.rglob("*")) if path.is_file()][:200],
    }


def _job(request: Request, name: str) -> tuple[Jobs, Job]:
    jobs = _jobs(request)
    try:
        return jobs, jobs.get(name)
    except SordinoError as error:
        raise Refused(404, error.message, field="name") from error


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs
