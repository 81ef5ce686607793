"""Distillation: a long text in front of the model becomes a few virtual tokens (prompt compression by context distillation; Snell,
Klein & Zhong 2022, arXiv 2209.15189; Mu, Li & Goodman 2023, arXiv 2304.08467).

The teacher is the model with the long text in front, the student the model with virtual tokens in its place. The student learns
what the teacher writes after many openings: a training run whose examples carry the teacher's probabilities.

source: the long text               openings: what both are asked to continue, with and without the text in front
teacher: its continuations          prepare: from the text to a run's examples
measuring: how much of the text's effect is kept
"""
