"""Does a soft prompt work? Its loss on held-out texts, beside what one would do without it.

conditions: what can stand in front of a text      scoring: the loss of the same tokens behind each of them
measuring: all of it, with intervals                report: the numbers, and what they mean
mixed: the same behind a mixture                    off_domain: a text in another voice, for the damage

Tasks: which answers are right?

tasks: rows, labels, examples to show        label_scores: all labels in one pass
classification: what they come to             mixture_answers: by a mixture's rule        answers: all of it
free_answers: short answers, written          relations: LAMA's subjects, objects and templates
"""
