"""A stand-in for Colab's own package: what the notebook calls, with folders in place of Drive and of the browser."""
