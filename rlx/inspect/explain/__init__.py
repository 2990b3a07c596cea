"""A model on every level as one HTML page. Read `page.py`; then `data.py`, which says what is on it."""
