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


def want_of_threads(error: BaseException | None) -> StoreError | None:
    """The line for an error that began with a thread that the system did not start; None for any other error."""
    while error is not None:
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return StoreError(
                "can't start new thread: raise the limit of processes (ulimit -u, or --pids-limit of a container) and run again; no file is damaged"
            )
        error = error.__cause__ or error.__context__
    return None


def check_threads(error: BaseException | None) -> None:
    """Refuse to call damage what is want of threads.

    Raises:
        StoreError: see :func:`want_of_threads`.
    """
    if (told := want_of_threads(error)) is not None:
        raise told from error
