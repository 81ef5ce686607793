"""A base model with soft prompts as tokens of its vocabulary, for programs that know no soft prompts."""
