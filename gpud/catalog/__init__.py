"""What model files say about themselves, read without loading anything; never what to do about it."""
