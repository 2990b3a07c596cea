"""Looking inside: of a model file (`model_file.py`), of a compilation. Imported by the compiler and the CLI."""
