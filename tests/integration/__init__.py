"""The first issue's promises, shown on whole models: files to logits and text, texts of every level, refusals."""
