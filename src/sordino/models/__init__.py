"""A base model's name to a frozen network: files, conversion, fingerprint, tokenizer."""
