"""The one exception that the command line turns into a one-line message."""


class FD3DError(ValueError):
    """Bad input: the message names the thing that is wrong and how to mend it."""


class SettingError(FD3DError):
    """A setting's value is out of range; the message begins with the setting's name, and the reader adds the section's."""
