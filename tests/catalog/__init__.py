"""The reader of model files, and a writer of such files for everybody's tests: ``from catalog import gguf_writer``."""
