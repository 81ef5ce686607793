"""Folders of soft prompt files: what they hold, names, installing and removing."""
