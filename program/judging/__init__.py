"""How far a judge can be trusted: its agreement with gold and people, its faults, and what may rest on it."""
