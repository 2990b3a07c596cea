"""The command line: one file per command. Read `main.py` first."""
