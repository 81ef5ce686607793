"""Sordino trains, shares, serves and mixes soft prompts."""

__version__ = "0.1.0"
