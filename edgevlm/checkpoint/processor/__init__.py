"""Readers of processor, tokenizer and chat template files, shared by the families."""
