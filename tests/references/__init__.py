"""Recorded answers of implementations nobody here wrote, and the scripts that make them anew; see README.md."""
