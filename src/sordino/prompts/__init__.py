"""What a soft prompt is, alone and mixed, and what can be said of it without a base model."""
