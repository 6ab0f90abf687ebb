"""From rows to tables, figures and one static page; needs no torch."""
