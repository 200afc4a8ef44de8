"""The one exception for what a person can put right."""


class UserError(ValueError):
    """Bad input: the message is one line that names the file or field and says what to do.

    Commands print it and exit with code 2; everything else that is raised is a fault of ours.
    """
