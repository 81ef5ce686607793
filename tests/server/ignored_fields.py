"""Fields of KoboldAI's clients that its routes ignore here, as any unknown field; docs/serving.md names them."""

from __future__ import annotations

from sordino.server.foreign import UNUSED

# Fields that KoboldAI's routes know and that mean nothing here.
IGNORED: dict[str, str] = {
    "use_story": "this server keeps no story",
    "use_memory": "this server keeps no memory",
    "use_authors_note": "this server keeps no author's note",
    "use_world_info": "this server keeps no world info",
    "use_userscripts": "this server runs no user scripts",
    "frmtadsnsp": "a space after the story's last action, and this server keeps no story",
    "sampler_full_determinism": "a seed gives the same text here in any case",
    **{field: UNUSED[field] for field in ("quiet", "trim_stop", "negative_prompt", "mirostat_tau", "mirostat_eta")},
    "mirostat": "not implemented",
    "grammar": "not implemented",
    "grammar_retain_state": "for `grammar`, which is not implemented",
    "guidance_scale": "not implemented",
    "nsigma": "not implemented",
    "adaptive_target": "not implemented",
    "adaptive_decay": "for `adaptive_target`, which is not implemented",
    "images": "the models read text alone",
    "render_special": "special tokens are never shown",
}
# Fields for whole answers: what has been sent cannot be trimmed.
IGNORED_IN_STREAMS: dict[str, str] = {
    "n": "one continuation is streamed",
    "frmttriminc": "what was sent cannot be taken back",
    "frmtrmblln": "what was sent cannot be taken back",
    "frmtrmspch": "what was sent cannot be taken back",
}
