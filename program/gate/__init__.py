"""Whether a candidate may take the live program's place: rules, evidence, decision, page, and shadow mode."""
