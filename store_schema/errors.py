"""The store's one exception."""


class StoreError(ValueError):
    """Something does not fit the store; the message names it and the fix."""


class OtherStoreError(StoreError):
    """A store that something else made: the message names the first field that differs and both values.

    Attributes:
        field: name of the field, dotted.
        stored, wanted: its values, as short JSON.
    """

    def __init__(self, message: str, field: str, stored: str, wanted: str) -> None:
        super().__init__(message)
        self.field, self.stored, self.wanted = field, stored, wanted
