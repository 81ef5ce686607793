"""Analysis of soft prompts: what each virtual token does and costs, pruning, and the path from one prompt to another.

losses: many candidate prompts on the same text, or one without each virtual token in turn
pruning: shorter prompts                             path: blends of two prompts
attention: of a text on the prompt                   inspection: all of it for one prompt      pictures: drawn
"""
