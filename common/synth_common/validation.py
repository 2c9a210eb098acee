"""Configuration models from plain values, and refusals that say what to type instead.

A refusal is one sentence per problem: the parameter as ``--set`` takes it, its value, and what
would be accepted. An unknown key gets the nearest known one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, RootModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from synth_common.errors import ConfigError

_Model = TypeVar("_Model", bound=BaseModel)
_LONGEST = 60
_LIMITS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of")
_WORDS = {
    "missing": "required, but not given",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "multiple_of": "must be a multiple of {multiple_of:g}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must look like {pattern}",
    "path_type": "must be a path",
    "tuple_type": "must be a list, as in [1, 2]",
    "too_short": "must hold at least {min_length} item(s)",
    "too_long": "must hold at most {max_length} item(s)",
    "dict_type": "must be a section with keys, not a single value",
    "model_type": "must be a section with keys, not a single value",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "{discriminator} is required, but not given",
}
"""What pydantic's kinds of error mean, by its own names and with its own values."""


def validate(
    model: type[_Model],
    values: Mapping[str, Any],
    where: str,
    context: Mapping[str, Any] | None = None,
) -> _Model:
    """Build a configuration model; a refusal names every bad key, its value and what is possible.

    Args:
        model: The model.
        values: Its values, as a file or a command line gave them.
        where: What the values are; begins the message.
        context: What the model's own validators need to know, as pydantic passes it on.

    Raises:
        ConfigError: With one sentence per problem.
    """
    try:
        return model.model_validate(values, context=context)
    except ValidationError as err:
        raise ConfigError(f"{where}: " + "; ".join(_problems(model, values, err))) from err


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a model and of its sections, as ``section.key``.

    Left out are keys within lists, and within sections of which there are several kinds: what is
    known there depends on the values.
    """
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        sections = list(sections_of(field.annotation))
        if len(sections) == 1 and not sections[0][1]:
            found += known_keys(sections[0][0], f"{prefix}{name}.")
    return found


def _problems(model: type[BaseModel], values: Mapping[str, Any], err: ValidationError) -> list[str]:
    """One sentence per key."""
    found: dict[str, list[str]] = {}
    keys = [".".join(_typed(values, item)) for item in err.errors()]
    for key, item in zip(keys, err.errors(), strict=True):
        # A list whose items were refused counts as empty, too: the items' sentences are enough.
        if item["type"] != "too_short" or not any(k.startswith(f"{key}.") for k in keys):
            subject, words = _problem(model, values, item)
            found.setdefault(subject, []).append(words)
    sentences = []
    for subject, (first, *others) in found.items():
        # Several for one key are the branches of a union: any of them would do.
        also = dict.fromkeys(words.removeprefix("must be ") for words in others)
        sentences.append(subject + " or ".join([first, *also]))
    return sentences


def _problem(
    model: type[BaseModel], values: Mapping[str, Any], item: ErrorDetails
) -> tuple[str, str]:
    """A key with its value, and what is wrong with it."""
    parts = _typed(values, item)
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        shown = "" if isinstance(value, Mapping) else f" (value {_shown(value)})"
        return f"{'.'.join(parts)}: unknown key{shown}", _nearest(model, values, parts)
    if kind == "union_tag_invalid":
        context = item["ctx"]
        parts, value = [*parts, context["discriminator"].strip("'")], context["tag"]
    words = _words(_field(model, values, parts), item)
    if not parts:  # what settings mean together; the message names them
        return "", words
    if kind == "missing" or isinstance(value, Mapping):
        return f"{'.'.join(parts)}: ", words
    return f"{'.'.join(parts)} = {_shown(value)}: ", words


def _typed(values: Any, item: ErrorDetails) -> list[str]:
    """The key as a user would type it: without pydantic's names of a union's branches."""
    parts, last = [], len(item["loc"]) - 1
    for number, part in enumerate(item["loc"]):
        inside: Any = values if isinstance(values, Mapping) else ()
        if isinstance(values, list | tuple):
            inside = range(len(values))
        if part in inside:
            values = values[part]
        elif item["type"] != "missing" or number < last:
            continue
        parts.append(str(part))
    return parts


def _words(field: FieldInfo | None, item: ErrorDetails) -> str:
    """What would be accepted."""
    kind = item["type"]
    if kind == "value_error":  # one of our own validators, which says it all
        return item["msg"].removeprefix("Value error, ")
    if field is not None and kind in _LIMITS:
        return f"must be {_bounds(field)}"
    if field is not None and kind == "string_pattern_mismatch" and field.description:
        return f"must be {field.description}"
    if kind not in _WORDS:
        return item["msg"][:1].lower() + item["msg"][1:]
    return _WORDS[kind].format(**item.get("ctx", {}))


def _bounds(field: FieldInfo) -> str:
    """What a number may be, in words."""
    limits: dict[str, str] = {}
    for item in _metadata(field):
        for name in ("ge", "gt", "le", "lt", "multiple_of"):
            if (limit := getattr(item, name, None)) is not None:
                limits[name] = f"{limit:g}"
    words = [f"at least {limits['ge']}"] if "ge" in limits else []
    words += [f"above {limits['gt']}"] if "gt" in limits else []
    words += [f"at most {limits['le']}"] if "le" in limits else []
    words += [f"below {limits['lt']}"] if "lt" in limits else []
    words += [f"a multiple of {limits['multiple_of']}"] if "multiple_of" in limits else []
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """Everything annotated to a field, also within ``Annotated[...] | None``."""
    yield from field.metadata
    for part in get_args(field.annotation):
        for item in getattr(part, "__metadata__", ()):
            yield from item.metadata if isinstance(item, FieldInfo) else [item]


def _nearest(model: type[BaseModel], values: Mapping[str, Any], parts: list[str]) -> str:
    """The known key that was meant, or those that the section has."""
    *section, name = parts
    siblings = list(
        dict.fromkeys(n for m in _models(model, values, section) for n in m.model_fields)
    )
    if near := get_close_matches(name, siblings, n=1):
        return f", did you mean {'.'.join([*section, *near])}?"
    elsewhere: dict[str, list[str]] = {}
    for key in known_keys(model):
        elsewhere.setdefault(key.rpartition(".")[2], []).append(key)
    # Under a section only the very name: what merely resembles it means something else there.
    if near := get_close_matches(name, elsewhere, n=1, cutoff=1.0 if section else 0.75):
        return f", did you mean {' or '.join(elsewhere[near[0]])}?"
    return f" (known here: {', '.join(siblings)})"


def _field(model: type[BaseModel], values: Mapping[str, Any], parts: list[str]) -> FieldInfo | None:
    """The declaration of a key; None for a list's item and for the whole."""
    models = _models(model, values, parts[:-1]) if parts else []
    return next((m.model_fields[parts[-1]] for m in models if parts[-1] in m.model_fields), None)


def _models(model: type[BaseModel], values: Any, section: list[str]) -> list[type[BaseModel]]:
    """The models that a section can be; of several kinds of it the one that was chosen."""
    models = [model]
    if issubclass(model, RootModel):
        models = [found for found, _ in sections_of(model.model_fields["root"].annotation)]
    for part in section:
        values = values[int(part) if isinstance(values, list | tuple) else part]
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [found for field in fields for found, _ in sections_of(field.annotation)] or models
    if isinstance(values, Mapping) and "kind" in values:
        models = [m for m in models if _is_kind(m, values["kind"])] or models
    return models


def _is_kind(model: type[BaseModel], kind: Any) -> bool:
    """Whether a model stands for a ``kind``; one without kinds stands for all."""
    field = model.model_fields.get("kind")
    return field is None or kind in get_args(field.annotation)


def sections_of(annotation: Any, listed: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The models that a value can be, and whether it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, listed
    for part in get_args(annotation):
        yield from sections_of(part, listed or get_origin(annotation) is tuple)


def _shown(value: Any) -> str:
    """A value as it was given, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
