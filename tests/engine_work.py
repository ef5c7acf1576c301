"""Work for the tests of the engines, apart from them, so that the processes which do it load nothing else."""

import os


def double_or_die(number: int) -> int:
    if number == 5:
        os._exit(1)
    return 2 * number


def fail_at_two(number: int) -> int:
    if number == 2:
        raise KeyError(number)
    return number
