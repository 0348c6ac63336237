"""What a release must not unlearn: `skills` frozen test sets, `matrix` the numbers, `report` the page."""
