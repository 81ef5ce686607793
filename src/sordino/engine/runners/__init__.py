"""Where requests run, cut at "request in, events out"."""
