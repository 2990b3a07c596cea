"""The parts of the kernel lab: limits of the machine, cases, timing, other programs. Read `cases.py` first."""
