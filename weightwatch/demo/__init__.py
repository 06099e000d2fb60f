"""The demonstration: weightwatch catches a fine-tune that goes bad."""
