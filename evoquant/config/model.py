"""The model of an experiment, and the architectures that differ from it in some of its fields."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, model_validator


def resolve(path: str | Path, info: ValidationInfo) -> Path:
    """An absolute path; a relative one counts from the ``folder`` of the validation context."""
    folder = (info.context or {}).get("folder") or Path.cwd()
    return Path(os.path.normpath(Path(folder).absolute() / Path(path).expanduser()))


FilePath = Annotated[Path, AfterValidator(resolve)]


class Section(BaseModel):
    """A part of an experiment: frozen, and without fields that it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSpec(Section):
    """The model to quantize.

    Attributes:
        name: A timm name, or ``mobilevit_micro``, which ships with the package.
        checkpoint: A safetensors file with the names of the model's parameters; None: see ``pretrained``.
        pretrained: Without a checkpoint, take the published weights (timm downloads them; those of
            ``mobilevit_micro`` ship with the package). False with no checkpoint means random weights.
        num_classes: Outputs of the classifier; None: as the model has it.
        image_size: Height and width of its input; None: as the model has it.
    """

    name: Annotated[str, Field(min_length=1)]
    checkpoint: FilePath | None = None
    pretrained: bool = False
    num_classes: PositiveInt | None = None
    image_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> Self:
        if self.checkpoint is not None and self.pretrained:
            raise ValueError("Weights come from checkpoint or from pretrained: true, but got both")
        return self


class ModelChanges(Section):
    """What sets the model of an architecture apart; None: as ``model`` of the experiment has it.

    Attributes:
        name: See ``ModelSpec``. Another name needs weights of its own if ``model`` has a checkpoint.
        checkpoint: Takes the place of ``pretrained``, too.
        pretrained: Takes the place of ``checkpoint``, too.
        num_classes: See ``ModelSpec``.
        image_size: See ``ModelSpec``.
    """

    name: Annotated[str, Field(min_length=1)] | None = None
    checkpoint: FilePath | None = None
    pretrained: bool | None = None
    num_classes: PositiveInt | None = None
    image_size: PositiveInt | None = None

    def applied(self, model: ModelSpec) -> ModelSpec:
        """The model with these changes.

        Raises:
            ValueError: If its weights would be those of another model, or come from two places.
        """
        changes = self.model_dump(exclude_none=True)
        has_own_weights = self.checkpoint is not None or self.pretrained is not None
        if self.name not in (None, model.name) and model.checkpoint is not None and not has_own_weights:
            raise ValueError(
                f"architectures: {self.name} cannot have {model.checkpoint.name}, the checkpoint of {model.name}; give "
                "it a checkpoint or pretrained"
            )
        if has_own_weights:
            changes = {"checkpoint": None, "pretrained": False, **changes}
        return ModelSpec(**{**model.model_dump(), **changes})


class ArchitectureSpec(Section):
    """One of several models that share a front.

    Attributes:
        name: What the front calls it.
        model: What sets it apart from ``model`` of the experiment; nothing: it is that model.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    model: ModelChanges = ModelChanges()
