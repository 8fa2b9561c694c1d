"""Numbers in messages."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 step`, `2,000 steps`; plural for other plurals than the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
