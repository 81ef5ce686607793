"""Many settings of one training, tried together: which to try, which to give up early, what came of them, what that says."""
