"""Training as such: the loop, optimisers, checkpoints and the log; knows no model and no folder of a run."""
