"""The models that scripts of 2023 name. Any other name may be given as a string."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from ...provider import Provider
from ...providers.h2o import H2o


class Model(NamedTuple):
    """A model, as g4f had it.

    Attributes:
        name: what the server calls it; ``""`` for the provider's own.
        base_provider: who made it.
        best_provider: who is asked for it, unless a call says otherwise.
    """

    name: str
    base_provider: str = ""
    best_provider: Provider | type[Provider] | str | None = None


_OPENAI = (
    "gpt-3.5-turbo gpt-3.5-turbo-0613 gpt-3.5-turbo-16k gpt-3.5-turbo-16k-0613 gpt-4 gpt-4-0613 gpt-4-32k"
    " gpt-4-32k-0613 gpt-4-turbo text-ada-001 text-babbage-001 text-curie-001 text-davinci-002 text-davinci-003"
    " code-davinci-002"
)
_H2O = {
    "falcon-7b": "h2oai/h2ogpt-gm-oasst1-en-2048-falcon-7b-v3",
    "falcon-40b": "h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v1",
    "llama-13b": "h2oai/h2ogpt-gm-oasst1-en-2048-open-llama-13b",
}


class ModelUtils:
    """The models by the names that a call may give."""

    convert: ClassVar[dict[str, Model]] = {
        **{name: Model(name, "openai") for name in _OPENAI.split()},
        **{name: Model(full, "huggingface", H2o) for name, full in _H2O.items()},
    }


def __getattr__(name: str) -> Model:
    """The models as ``models.gpt_35_turbo``, ``models.falcon_40b`` …"""
    if name == "default":
        return Model("")
    if name == "gpt_35_long":
        return ModelUtils.convert["gpt-3.5-turbo"]
    for known, model in ModelUtils.convert.items():
        if known.replace("3.5", "35").replace("-", "_") == name:
            return model
    raise AttributeError(f"there is no model {name!r} here: give its name as a string")
