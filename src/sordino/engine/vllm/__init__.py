"""vLLM behind the seam of backends. Imports vLLM only when it runs."""
