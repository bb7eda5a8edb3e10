"""The bodies of requests and answers, as /docs shows them and as they are checked.

/v1/embeddings has OpenAI's shape. Fields of its JSON that are not known are ignored, as clients of
that API send some, and the answer's header X-Ignored-Fields names them. Forms, queries and
/v1/augmentations are ours and refuse them; /v2 is the open inference protocol, whose clients
may add fields, but no parameters of a tensor that we do not know: they say what its data mean.
An optional field that is null is one that was left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator

DATA_URL = "data:image/<type>;base64,<bytes>"


class EmbeddingOptions(BaseModel):
    """How embeddings are wanted: fields of the JSON or the form, or the query of any body."""

    model: str | None = Field(
        default=None, max_length=256, description="Absent: the first model served."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64: little-endian float32. Absent: float."
    )
    dimensions: int | None = Field(
        default=None, description="No other than the model's: embeddings are never cut."
    )
    normalize: bool | None = Field(
        default=None, description="Divide every vector by its length. Absent: no."
    )
    modality: Literal["image"] | None = Field(
        default=None, description="Sent by clients of servers that also embed texts."
    )
    user: str | None = Field(default=None, description="Part of OpenAI's shape; has no effect.")


class EmbeddingFields(EmbeddingOptions):
    """The same of a form or a query, where nothing else may stand."""

    model_config = ConfigDict(extra="forbid")


class EmbeddingRequest(EmbeddingOptions):
    model_config = ConfigDict(extra="allow")  # ignored, and said so

    input: Annotated[list[str], FailFast()] = Field(
        description=f"Images, each {DATA_URL}; a single one needs no list."
    )

    @field_validator("input", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class AugmentationOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        default=None, max_length=256, description="Absent: the first model served."
    )


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: str = Field(description=DATA_URL)
    b: str = Field(description=DATA_URL)


class AugmentationRequest(AugmentationOptions):
    pairs: Annotated[list[Pair], FailFast()] = Field(
        description="The differences say what takes a to b."
    )


class Usage(BaseModel):
    prompt_tokens: int = 0
    total_tokens: int = 0


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage = Usage()


class DifferenceValue(BaseModel):
    """One number of a regression head; what cannot be told is null."""

    name: str
    value: float | None
    unit: str
    standard_error: float | None = Field(description="In the same unit; null: not known.")
    standard_error_of: Literal["pair", "average"] = Field(
        description="Whether it is this pair's own or the average over held-out pairs."
    )
    head: Literal["matcher", "features"] = Field(
        description="Which head answered: the matcher on feature maps, or one on features."
    )
    reason: str | None = Field(
        default=None,
        description="Only where the value is null; begins with not learned, not observable, beyond "
        "what was trained on or unlike pictures.",
    )


class Differences(BaseModel):
    index: int
    match: float | None = Field(
        description="How probable it is that both pictures show one thing; null: not known."
    )
    differences: dict[str, list[DifferenceValue] | dict[str, float | list[float] | str | None]] = (
        Field(
            description="Kind -> numbers; of flip and rot a probability by its name, beside head "
            "and reason, as numbers have them."
        )
    )


class AugmentationAnswer(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Differences]


class ModelRecord(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(
        default=0, description="Part of OpenAI's shape; a model folder has no date."
    )
    owned_by: str = "augself-hub"
    dimension: int = Field(description="Length of an embedding.")
    convention: str = Field(
        description="relative: a difference takes a to b; paper: it is a minus b, as in the paper."
    )
    augmentations: dict[str, list[str]] = Field(description="Kind -> what its head predicts.")
    units: dict[str, dict[str, str]] = Field(description="Kind -> name -> unit.")
    limits: dict[str, int | float]
    sha256: str = Field(description="Of the encoder's graph.")
    state: str = Field(
        description="loaded; loading; unloaded: a request loads it; lost: its worker is restarted; "
        "failed: it could not be loaded."
    )
    memory_bytes: int = Field(description="Of this process, while the model is loaded.")
    provider: str | None = Field(description="ONNX Runtime's execution provider; null: not loaded.")
    precision: str = Field(description="Of the encoder's graph: fp32, bf16, int8 or fp16.")
    decode: str = Field(description="exact, or fast: large JPEGs decoded at reduced size.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelRecord]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    error: ErrorBody


MOST_TENSORS = 64  # inputs or outputs of one request; no graph has a tenth of them


class InferInput(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    datatype: str
    shape: Annotated[list[int], FailFast()]
    parameters: dict[str, Any] | None = Field(
        default=None, description="binary_data_size: bytes of this input that follow the JSON."
    )
    data: list[Any] | None = Field(
        default=None, description="Numbers, flat or nested like the shape, or binary_data_size."
    )


class InferOutput(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    parameters: dict[str, Any] | None = Field(
        default=None, description="binary_data: true or false."
    )


_Outputs = Annotated[list[InferOutput], Field(fail_fast=True, max_length=MOST_TENSORS)]


class InferRequest(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str | None = Field(default=None, description="Comes back in the answer.")
    parameters: dict[str, Any] | None = Field(
        default=None, description="binary_data_output: the default of outputs' binary_data."
    )
    inputs: Annotated[list[InferInput], FailFast()] = Field(max_length=MOST_TENSORS)
    outputs: _Outputs | None = Field(default=None, description="None: all of them.")


class InferredOutput(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}
    data: list[float] | None = Field(default=None, description="Absent: binary.")


class InferAnswer(BaseModel):
    model_name: str
    id: str | None = None
    outputs: list[InferredOutput]


class TensorRecord(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: as many as are sent.")


class GraphRecord(BaseModel):
    name: str
    platform: str
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]


class ServerRecord(BaseModel):
    name: str
    version: str
    extensions: list[str]


class SentenceAnswer(BaseModel):
    error: str
