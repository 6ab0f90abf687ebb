"""Which window is seen when: index arrays, the order artifact, batches."""
