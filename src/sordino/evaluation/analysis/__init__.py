"""Soft prompts taken apart: what each virtual token is near to, does and costs; and the way from one to another.

losses: many candidate prompts on the same text in one batch      importance: each virtual token left out      pruning: dropped
path: blends of two prompts      attention: who looks at the prompt      inside: all that one prompt shows      pictures, drawn
"""
