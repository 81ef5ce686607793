"""For schemathesis: names that exist and sizes that are served, so that requests get past the first checks."""

from typing import Any

import schemathesis

SMALL = ("max_tokens", "max_completion_tokens", "max_length")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if isinstance(body, dict):
        said = {"model": "tiny-llama", "soft_prompt": "keeper", "soft_prompt_name": "clerk"}
        body |= {name: value for name, value in said.items() if isinstance(body.get(name), str)}
        body |= {name: abs(body[name]) % 5 for name in SMALL if isinstance(body.get(name), int)}
    return body
