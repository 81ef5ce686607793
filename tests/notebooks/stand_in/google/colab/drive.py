"""Drive is a folder that is there from one session to the next."""

from pathlib import Path


def mount(mountpoint: str) -> None:
    Path(mountpoint, "MyDrive").mkdir(parents=True, exist_ok=True)
    print(f"Mounted at {mountpoint}")  # noqa: T201
