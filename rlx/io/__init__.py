"""Files and what is in them: model references, GGUF, safetensors, tokenizers, chat templates.

Comes in: a reference or a path. Goes out: a `Checkpoint` (`checkpoint.py`), a tokenizer, a template. Everything a file
says is checked against its size before it is believed. Read `reference.py` first.
"""
