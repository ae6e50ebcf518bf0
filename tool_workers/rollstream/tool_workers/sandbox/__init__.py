"""Where model-written code runs: one bubblewrap sandbox per tool session, a small supervisor as its PID 1."""
