"""The state after N updates on disk: step folders and their proof."""
