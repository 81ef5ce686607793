"""How much weight each of several soft prompts gets, found from examples (Qin & Eisner 2021, arXiv 2104.06599).

em: weights alone                    gate: weights that depend on the text
joint: soft prompts and weights      fit: from texts to a mixture
report: all of them on the same held-out tokens
execute: all of it, to the mixture's file
"""
