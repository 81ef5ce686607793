"""The one question to the browser: the address at which the notebook's proxy shows a port."""

import re


def eval_js(script: str) -> str:
    asked = re.fullmatch(r"google\.colab\.kernel\.proxyPort\((\d+)\)", script)
    assert asked, script
    return f"https://{asked[1]}-cpu-s-stand-in.us-west4-0.prod.colab.dev/"
