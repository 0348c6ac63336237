"""The loop: when to renew, with what, under which budget, and what becomes of the candidate."""
