"""The one idea: rows of text behind soft prompts through a frozen base model, their losses and gradients."""
