"""Does a soft prompt work? Its loss on held-out texts, beside what one would do without it.

conditions: what can stand in front of a text      scoring: the loss of the same tokens behind each of them
measuring: all of it, with intervals                report: the numbers, and what they mean
off_domain: a text in another voice, for the damage
"""
