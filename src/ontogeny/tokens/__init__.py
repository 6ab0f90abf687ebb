"""From documents to token ids: vocabulary, encoding, the store."""
