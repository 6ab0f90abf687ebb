"""The command line, words in, words out: one file a group of verbs, each a few lines a verb."""
