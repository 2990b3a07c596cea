"""What the first issue promises, shown on whole models: from files to logits, text, texts of every level, and refusals."""
