"""What clients sent, in messages and log lines that name it."""


def shortened(text: str, max_length: int = 200) -> str:
    """The text, or how it begins: a client's may have megabytes."""
    return text if len(text) <= max_length else f"{text[:max_length]}..."
