"""Documents: reading, the pinned demo components, planted documents, duplicates, the cut."""
