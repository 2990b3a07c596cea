"""What runs a compiled program: sessions, the KV cache, the engine, sampling and generation.

Order of reading: `load.py` (the wiring), `step.py` (the machine below), `session.py`, `engine.py`, `generate.py`,
`model.py`.
"""
