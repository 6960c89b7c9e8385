"""The store's one exception."""


class StoreError(ValueError):
    """Something does not fit the store; the message names it and the fix."""
