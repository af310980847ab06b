"""Several processes that train one run: how they were started, what they exchange, and the signals they receive."""
