"""Recipes: the texts that a direction is built from and evaluated on."""
