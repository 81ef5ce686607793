"""Downloads go into the folder that DOWNLOADS names."""

import os
import shutil


def download(filename: str) -> None:
    shutil.copy(filename, os.environ["DOWNLOADS"])
