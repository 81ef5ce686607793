"""Files to pieces to three sets to examples: token ids and labels. Knows no training."""
