"""The benchmark of every method: cells of results that can be trusted, resumed and shown."""
