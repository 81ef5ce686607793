"""Galleries: soft prompts that web pages offer. Their index, the pages, the way to them, and what was added on this machine."""
