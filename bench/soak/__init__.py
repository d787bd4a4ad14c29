"""The system and the load of ``bench.faults``, and nothing goes wrong: what stays flat, and who was answered."""
