"""What people say of the program's answers, kept: `types` its nouns, `store` where they stand, `queue` what is next."""
