"""The operator's settings, read from the environment: vLLM's plugin interface passes nothing else to every process."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from vllm_edit.errors import EditError

STORE = "VLLM_EDIT_STORE"
EXPOSE = "VLLM_EDIT_EXPOSE"
ALLOW_OPEN = "VLLM_EDIT_ALLOW_OPEN"
TENANT_HEADER = "VLLM_EDIT_TENANT_HEADER"
TRUSTED_PEERS = "VLLM_EDIT_TRUSTED_PEERS"
FORWARDED = "FORWARDED_ALLOW_IPS"
"""uvicorn's list of peers whose X-Forwarded-For replaces a connection's address; by default anyone on this machine."""
LOG_DAYS = "VLLM_EDIT_LOG_DAYS"
LOG_PROMPTS = "VLLM_EDIT_LOG_PROMPTS"
ALLOWED_FIELDS = "VLLM_EDIT_ALLOWED_FIELDS"
MAX_BODY = "VLLM_EDIT_MAX_BODY_MIB"
MAX_ANSWERS = "VLLM_EDIT_MAX_ANSWERS"
CONSOLE_SECRET = "VLLM_EDIT_CONSOLE_SECRET"

_HEADER = re.compile(r"[a-z0-9-]{1,64}")
_LEAST_BODY_BYTES = 8 * 2**20  # pictures in base64, and long lists of tools, take bytes and few tokens
_BYTES_OF_A_TOKEN = 64  # more than any text has on average: escaped in JSON, some bytes a character
_LEAST_SECRET = 32  # characters
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def _switch(given: object) -> object:
    if isinstance(given, str) and given.strip() not in ("0", "1"):
        raise ValueError(f"expected 1 (on) or 0 (off), got {_shown(given)}")
    return given.strip() if isinstance(given, str) else given


def _header(given: object) -> object:
    if not isinstance(given, str):
        return given
    name = given.strip().lower()
    if name and (_HEADER.fullmatch(name) is None or name.startswith("x-vllm-edit-")):
        raise ValueError(f"expected a header's name like x-tenant, got {_shown(name)}")
    return name or None


def _peers(given: object) -> object:
    if not isinstance(given, str):
        return given
    peers = []
    for peer in _listed(given):
        try:
            peers.append(ip_network(peer))
        except ValueError:
            raise ValueError(f"expected addresses or networks like 10.0.0.0/8, got {_shown(peer)}") from None
    return peers


def _days(given: object) -> object:
    try:
        days = float(str(given))
    except ValueError:
        days = -1.0
    if not 0 <= days < 36_500:
        raise ValueError(f"expected a number of days, 0 for ever, got {_shown(given)}")
    return days


def _mebibytes(given: object) -> object:
    """Bytes; the environment's text is a number of MiB."""
    if not isinstance(given, str):
        return given
    return _whole(given, "MiB", 1, 4096) * 2**20 if given.strip() else None


def _answers(given: object) -> object:
    return _whole(given, "answers", 1, 10_000_000) if isinstance(given, str) else given


def _whole(given: str, of_what: str, least: int, most: int) -> int:
    """Raises ValueError unless the text is a whole number in the range."""
    number = given.strip()
    if not (number.isascii() and number.isdigit() and len(number) < 10 and least <= int(number) <= most):
        raise ValueError(f"expected a whole number of {of_what} from {least} to {most}, got {_shown(given)}")
    return int(number)


def _secret(given: object) -> object:
    """The message omits the value, which is nearly a secret."""
    if isinstance(given, str) and len(given) < _LEAST_SECRET:
        raise ValueError(
            f"expected at least {_LEAST_SECRET} characters, as of `openssl rand -hex 32`, got {len(given)}"
        )
    return given


def _fields(given: object) -> object:
    if not isinstance(given, str):
        return given
    names = _listed(given)
    if wrong := sorted({name for name in names if _FIELD.fullmatch(name) is None}):
        shown = ", ".join(map(_shown, wrong))
        raise ValueError(f"expected names of fields with commas, like documents,priority, got {shown}")
    return names


def _listed(given: str) -> list[str]:
    return [part.strip() for part in given.split(",") if part.strip()]


def _shown(given: object) -> str:
    """A value for a message; it may be long."""
    return repr(given[:80] if isinstance(given, str) else given)


Network = IPv4Network | IPv6Network
Switch = Annotated[bool, BeforeValidator(_switch)]


class Settings(BaseSettings):
    """The settings of one server. `Settings(…)` takes them from its arguments, `from_environment` from variables."""

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True, env_prefix="VLLM_EDIT_", case_sensitive=True)

    store: str | None = Field(
        None, validation_alias=STORE, description="the store's URL; without it the plugin only fixes the CPU defect"
    )
    expose: Switch = Field(
        False,
        validation_alias=EXPOSE,
        description="answer headers also say adapter, mode and IKE tokens (not in a blinded test)",
    )
    allow_open: Switch = Field(
        False, validation_alias=ALLOW_OPEN, description="serve without keys on an address that is not loopback"
    )
    tenant_header: Annotated[str | None, BeforeValidator(_header)] = Field(
        None, validation_alias=TENANT_HEADER, description="the header in which a gateway names the tenant"
    )
    trusted_peers: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_peers)] = Field(
        (), validation_alias=TRUSTED_PEERS, description="the gateways' addresses"
    )
    log_days: Annotated[float, BeforeValidator(_days)] = Field(
        30.0,
        validation_alias=LOG_DAYS,
        description="days after which logged answers are deleted; 0 keeps them for ever",
    )
    log_prompts: Switch = Field(False, validation_alias=LOG_PROMPTS, description="log the prompts' text")
    allowed_fields: Annotated[frozenset[str], NoDecode, BeforeValidator(_fields)] = Field(
        frozenset(),
        validation_alias=ALLOWED_FIELDS,
        description="fields of a request that tenants may send besides those of `fields.ALLOWED`",
    )
    max_body_bytes: Annotated[int | None, BeforeValidator(_mebibytes)] = Field(
        None,
        validation_alias=MAX_BODY,
        description="maximum bytes of a request's body; None derives it from the model's context (`body_bytes`)",
    )
    console_secret: Annotated[SecretStr | None, BeforeValidator(_secret)] = Field(
        None,
        validation_alias=CONSOLE_SECRET,
        description="signs the console's sessions, the same on all servers; None makes one for this process",
    )
    max_answers: Annotated[int, BeforeValidator(_answers)] = Field(
        10_000,
        validation_alias=MAX_ANSWERS,
        description="maximum number of answers that the server holds in memory, to be found by their ids",
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the variables of `environment`, by default this process's own; an empty one counts as unset.

        Raises:
            EditError: values that cannot be read, one line for each: the variable, what is expected and what came.
        """
        source = EnvSettingsSource(cls)
        given = os.environ if environment is None else environment
        source.env_vars = {name: value for name, value in given.items() if value}
        try:
            return cls(**source())
        except ValidationError as error:
            raise EditError("\n".join(map(_line, error.errors()))) from None

    @model_validator(mode="after")
    def _gateway_is_whole(self) -> Settings:
        if (self.tenant_header is None) != (not self.trusted_peers):
            raise ValueError(
                f"{TENANT_HEADER} and {TRUSTED_PEERS} go together: a header counts only from named gateways"
            )
        return self

    def body_bytes(self, context: int) -> int:
        """Maximum bytes of a request's body. By default it exceeds any prompt of `context` tokens. The limit
        exists because parsing a body blocks all other requests."""
        return self.max_body_bytes or max(_LEAST_BODY_BYTES, context * _BYTES_OF_A_TOKEN)


def _line(problem: ErrorDetails) -> str:
    """The variable, and what is wrong with its value."""
    message = problem["msg"].removeprefix("Value error, ")
    return ": ".join([*map(str, problem["loc"][:1]), message])
