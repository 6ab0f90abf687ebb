"""From batches to checkpoints: schedule, optimizer, precision, metrics, the loop."""
