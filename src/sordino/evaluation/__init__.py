"""Does a soft prompt work? Its loss on held-out texts and its answers to tasks, compared with baselines.

config: settings                                  conditions: prefixes that a text is measured after
scoring: losses of the same tokens                mixed: the same with mixtures
confidence: intervals                             off_domain: a packaged text in another voice
measuring: held-out losses, with intervals        report: their numbers and sentences
distance, distance_plan: gains after other text  between: that text
distance_report: what is shown                    adapters: LoRA, to compare with
continuations: whether text stays healthy         pictures: drawn

Tasks: which answers are right?

tasks: rows, labels, examples                     label_scores: log-probabilities of all labels in one pass
classification: accuracy and other measures       answers: closed sets
free_answers: short written answers
"""
