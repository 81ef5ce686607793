"""Soft prompt files in folders and other sources: listing, names, installing, removing."""
