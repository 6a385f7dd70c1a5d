"""Implements what a start needs of `contextlib`, which itself imports `functools` and `collections`."""

# Type checkers see `contextlib` (see runtime.light).
# mypy: ignore-errors

from __future__ import annotations

import sys


class suppress:
    """Suppress like contextlib.suppress, but not exceptions inside groups."""

    __slots__ = ("_kinds",)

    def __init__(self, *kinds):
        self._kinds = kinds

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, self._kinds)


def contextmanager(function):
    """Make a context manager like contextlib.contextmanager, for `with` only, not as a decorator."""

    def begin(*arguments, **named):
        return _GeneratorContext(function(*arguments, **named))

    begin.__name__, begin.__qualname__, begin.__doc__ = function.__name__, function.__qualname__, function.__doc__
    begin.__module__, begin.__wrapped__ = function.__module__, function
    return begin


class _GeneratorContext:
    __slots__ = ("_generator",)

    def __init__(self, generator):
        self._generator = generator

    def __enter__(self):
        for value in self._generator:
            return value
        raise RuntimeError("generator didn't yield")

    def __exit__(self, kind, error, trace):
        if error is None:
            for _value in self._generator:
                self._refuse_second_yield()
            return False
        try:
            self._generator.throw(error)
        except StopIteration as end:
            return end is not error
        except RuntimeError as other:
            # A StopIteration that leaves a generator becomes the cause of a RuntimeError (PEP 479).
            if other is not error and not (isinstance(error, StopIteration) and other.__cause__ is error):
                raise
            return _as_before(error, trace)
        except BaseException as other:
            if other is not error:
                raise
            return _as_before(error, trace)
        return self._refuse_second_yield()

    def _refuse_second_yield(self):
        self._generator.close()
        raise RuntimeError("generator didn't stop")


def _as_before(error, trace):
    error.__traceback__ = trace  # without the generator's frame
    return False


class ExitStack:
    """A stack like contextlib.ExitStack, with callback, enter_context, push, pop_all and close."""

    def __init__(self):
        self._leaves = []

    def __enter__(self):
        return self

    def enter_context(self, context):
        leave = context.__exit__
        entered = context.__enter__()
        self._leaves.append(leave)
        return entered

    def callback(self, function, /, *arguments, **named):
        def leave(_kind, _error, _trace):
            function(*arguments, **named)

        self._leaves.append(leave)
        return function

    def push(self, exit):
        """Exit `exit`, an entered context or a function like `__exit__`, with the stack."""
        self._leaves.append(getattr(exit, "__exit__", exit))
        return exit

    def pop_all(self):
        moved = type(self)()
        moved._leaves, self._leaves = self._leaves, []
        return moved

    def close(self):
        self.__exit__(None, None, None)

    def __exit__(self, kind, error, trace):
        handled = sys.exc_info()[1]  # `error`, or what was being handled before the block
        pending = error
        while self._leaves:
            leave = self._leaves.pop()
            try:
                if leave(pending and type(pending), pending, pending and pending.__traceback__):
                    pending = None
            except BaseException as another:
                _chain(another, handled, pending)
                pending = another
        if pending is None or pending is error:
            return pending is None and error is not None
        context = pending.__context__
        try:
            raise pending
        finally:
            pending.__context__ = context  # `raise` has put the handled exception there


def _chain(error, handled, pending):
    """Make `pending` the context of `error`, as nested `with` statements do."""
    while error.__context__ not in (None, handled, pending):
        error = error.__context__
    if error.__context__ is not None:
        error.__context__ = pending
