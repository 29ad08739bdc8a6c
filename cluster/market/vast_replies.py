"""The fields of Vast's replies that vast.py reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from cluster.market import reply_rows
from cluster.market.reply_rows import Amount


class Reply(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def null_is_absent(cls, row: object) -> object:
        """Applies to optional fields: Vast's documentation doesn't specify which fields may be null."""
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {k: v for k, v in row.items() if v is not None or k not in optional} if isinstance(row, dict) else row


class Ask(Reply):
    id: str
    machine_id: str
    gpu_name: str | None
    num_gpus: int
    gpu_ram: Amount
    min_bid: Amount
    dph_total: Amount
    storage_cost: Amount
    storage_total_cost: Amount | None = None
    inet_up_cost: Amount = 0.0
    inet_down_cost: Amount = 0.0
    reliability: Amount
    cpu_cores_effective: float = 0.0
    cpu_ram: float = 0.0
    geolocation: str | None = None
    cuda_max_good: float | None = None
    hosting_type: int | None = None
    cluster_id: str | None = None


class Asks(Reply):
    offers: list[Ask]

    @field_validator("offers", mode="before")
    @classmethod
    def readable(cls, found: list) -> list:
        return reply_rows.readable(Ask, found, "vast, offers")


class Created(Reply):
    new_contract: str


class Port(Reply):
    HostPort: int


class Instance(Reply):
    id: str
    label: str
    actual_status: str | None = None
    intended_status: str | None = None
    cur_state: str | None = None
    status_msg: str | None = None
    is_bid: bool = False
    dph_total: Amount | None = None
    storage_cost: Amount = 0.0
    storage_total_cost: Amount | None = None
    disk_space: Amount = 0.0
    start_date: Amount | None = None
    uptime_mins: Amount | None = None
    machine_id: str = ""
    gpu_name: str | None = None
    num_gpus: int = 0
    public_ipaddr: str | None = None
    local_ipaddrs: str | None = None
    ports: dict[str, list[Port] | None] | list[int] | None = None


class Instances(Reply):
    instances: list[Instance]
    next_token: str | None = None

    @field_validator("instances", mode="before")
    @classmethod
    def ours(cls, found: list) -> list:
        """Ignores the account's other instances, so that their contents can't prevent listing and destroying ours."""
        return reply_rows.ours(Instance, found, "label", "vast, list")


class Logs(Reply):
    result_url: str | None = None


class Done(Reply):
    pass
