"""The HTTP server: one base model, any number of soft prompts, through the programs people already use."""
