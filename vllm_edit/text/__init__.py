"""Text in every script: words and their spelling, names in texts, prompts as token ids, text files. No torch."""
