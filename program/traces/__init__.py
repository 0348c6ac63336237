"""A trace of every answer: `types` the noun, `policy` what may be kept, `store` where, `tracing` how it is made."""
