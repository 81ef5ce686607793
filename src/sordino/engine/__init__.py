"""Many requests to one base model in one batch: requests in, events out."""
