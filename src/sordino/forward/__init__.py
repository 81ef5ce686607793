"""The one idea: rows of text after soft prompts through a frozen base model, their losses and gradients."""
