"""Training runs: settings, start, gradient, loop and checkpoint; from texts to a file; the queue of runs."""
