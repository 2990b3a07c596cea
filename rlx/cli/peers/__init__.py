"""Other programs that `rlx bench` runs beside RLX on the same file. Read `peer.py` first."""
