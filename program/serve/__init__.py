"""The program served over HTTP to a page for reviewing contracts: `session` asks, `app` speaks, `run` listens."""
