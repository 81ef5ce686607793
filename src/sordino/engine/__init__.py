"""Many rows of one base model in one batch: requests in, events out."""
