"""gpud beside what people use in its place today, with real engines and two tiny models, in one run."""
