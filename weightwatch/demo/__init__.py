"""The demonstration: a fine-tune that goes bad is caught while it runs."""
