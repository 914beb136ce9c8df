"""How good is a detector? Annotated pictures in, scores out."""
