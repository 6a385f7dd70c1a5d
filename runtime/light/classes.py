"""Implements `dataclass` with slots for plain values. It compiles no code, so a class takes only microseconds.

`dataclasses.fields`, `replace` and `asdict` work on the result; they import `dataclasses` then.
"""

# Type checkers use the standard library's annotations (see runtime.light).
# mypy: ignore-errors

from __future__ import annotations

from _operator import attrgetter  # without the package around it

_MISSING = object()


class _Factory:
    __slots__ = ("make",)

    def __init__(self, make):
        self.make = make


def field(*, default_factory):
    return _Factory(default_factory)


def dataclass(cls=None, *, frozen=False, slots=True):
    """Like `dataclasses.dataclass`, for a class without dataclass bases."""
    if cls is None:
        return lambda cls: _make(cls, frozen)
    return _make(cls, frozen)


def replace(value, /, **changes):
    """Return a copy of `value` with other members."""
    cls = type(value)
    made = object.__new__(cls)
    take, puts = changes.pop, cls.__dict__
    for name in cls.__slots__:
        puts[name].__set__(made, take(name) if name in changes else getattr(value, name))
    if changes:
        raise TypeError(f"{cls.__name__}() has no {', '.join(changes)}")
    return made


def _make(cls, frozen):
    namespace = dict(cls.__dict__)
    names = tuple(name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))
    defaults = {name: namespace.pop(name) for name in names if name in namespace}
    namespace.pop("__dict__", None)
    namespace.pop("__weakref__", None)
    equal, hashed = _comparison(names)
    namespace |= {
        "__slots__": names,
        "__match_args__": names,
        "__repr__": _repr,
        "__eq__": equal,
        "__hash__": hashed if frozen else None,
        "__reduce__": _reduce,
        "__dataclass_fields__": _Fields(names, defaults),
    }
    if frozen:
        namespace |= {"__setattr__": _refuse, "__delattr__": _refuse}
    made = type(cls)(cls.__name__, cls.__bases__, namespace)
    made.__qualname__ = cls.__qualname__
    made.__init__ = _initialiser(made, names, defaults)
    return made


def _initialiser(cls, names, defaults):
    # Use the slots' descriptors, which bypass a frozen class's __setattr__.
    members = [(name, cls.__dict__[name].__set__, defaults.get(name, _MISSING)) for name in names]

    count = len(members)

    def __init__(self, *args, **kwargs):
        rest = members
        if args:
            if len(args) > count:
                raise TypeError(f"{cls.__name__}() takes {count} arguments, got {len(args)}")
            for (name, put, _default), value in zip(members, args, strict=False):
                if name in kwargs:
                    raise TypeError(f"{cls.__name__}() got {name!r} twice")
                put(self, value)
            rest = members[len(args) :]
        take = kwargs.pop
        for name, put, default in rest:
            value = take(name, default)
            if value is _MISSING:
                raise TypeError(f"{cls.__name__}() lacks {name!r}")
            put(self, value.make() if type(value) is _Factory else value)
        if kwargs:
            raise TypeError(f"{cls.__name__}() has no {', '.join(kwargs)}")

    return __init__


def _values(self):
    return tuple(getattr(self, name) for name in self.__slots__)


def _repr(self):
    members = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
    return f"{type(self).__qualname__}({members})"


def _comparison(names):
    """Return __eq__ and __hash__. Execs of one container are compared by all that they do."""
    values = attrgetter(*names) if names else _values

    def equal(self, other):
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    return equal, lambda self: hash(values(self))


def _reduce(self):
    return type(self), _values(self)


def _refuse(self, name, *_value):
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


class _Fields:
    """Builds a class's `__dataclass_fields__` when it is first read."""

    __slots__ = ("_defaults", "_made", "_names")

    def __init__(self, names, defaults):
        self._names = names
        self._defaults = defaults
        self._made = None

    def __get__(self, instance, owner):
        if self._made is None:
            import dataclasses

            members = []
            for name in self._names:
                default = self._defaults.get(name, _MISSING)
                if default is _MISSING:
                    spec = dataclasses.field()
                elif type(default) is _Factory:
                    spec = dataclasses.field(default_factory=default.make)
                else:
                    spec = dataclasses.field(default=default)
                members.append((name, owner.__annotations__[name], spec))
            self._made = dataclasses.make_dataclass(owner.__name__, members, kw_only=True).__dataclass_fields__
        return self._made
