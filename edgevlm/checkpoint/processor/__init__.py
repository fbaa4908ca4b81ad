"""What the families' readers of processor, tokenizer and template files have in common."""
