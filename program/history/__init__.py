"""What an owner looks at once a week: the history page, ten lines of status, and a check of all that it rests on."""
