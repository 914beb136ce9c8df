"""How fast is it, and what does it cost? Load, contestants and reports; ``python -m evaluation.benchmark``."""
