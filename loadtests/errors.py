"""What a load test can say to its user."""


class LoadTestError(Exception):
    """Why there is nothing to measure: one line, and the exit code."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
