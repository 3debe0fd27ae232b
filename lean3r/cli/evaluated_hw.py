"""tmp"""


def hardware() -> dict:
    """tmp"""
    return {}
