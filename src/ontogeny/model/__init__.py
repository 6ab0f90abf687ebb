"""GPT-NeoX on one device: forward pass, initialisation, loss, Hugging Face layout."""
