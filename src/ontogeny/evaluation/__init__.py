"""From checkpoints to scores: the only inference code, tasks, the sweep."""
