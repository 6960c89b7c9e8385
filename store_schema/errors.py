"""The store's exceptions."""


class StoreError(ValueError):
    """An input or file that does not fit the store; the message names the input or file and the fix."""


class OtherStoreError(StoreError):
    """A store that something else made: the message names the first field that differs and both values.

    Attributes:
        field: name of the field, dotted.
        stored, wanted: the field's values, as short JSON.
    """

    def __init__(self, message: str, field: str, stored: str, wanted: str) -> None:
        super().__init__(message)
        self.field, self.stored, self.wanted = field, stored, wanted
