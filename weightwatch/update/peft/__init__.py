"""PEFT adapters inside a model as changes of its weights."""
