"""Turns files into pieces, pieces into three sets, and those into examples (token ids and labels). Does not know about training."""
