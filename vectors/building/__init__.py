"""Building a behaviour direction from a recipe: answers, verdicts, fine-tunes, their contrast."""
