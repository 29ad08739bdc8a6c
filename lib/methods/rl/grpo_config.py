"""The keys of `train:` for jobs/grpo.py: TRL's GRPOConfig without those that follow from other sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl.trainer.grpo_config import GRPOConfig  # by its module, where lib/config/trl_fields.py finds its fields


@dataclass
class StepGRPOConfig(GRPOConfig):
    reward_clip: float | None = field(
        default=None,
        metadata={"help": "Limit each reward to ± this number before it is multiplied by its weight. None: no limit."},
    )
    kl_limit: float | None = field(
        default=None,
        metadata={"help": "KL to the reference, in nats an answer, above which the run's page warns. None: no limit."},
    )
    # One generation per update, of scale.global_batch answers: with TRL's other choices the order of the answers, and with it the
    # steps, would depend on the number of workers.
    generation_batch_size: int | None = field(default=None, init=False)
    steps_per_generation: int | None = field(default=None, init=False)
    num_generations_eval: int | None = field(default=1, init=False)
    reward_weights: list[float] | None = field(default=None, init=False)
    # Answers come from lib/methods/rl/rollouts.py.
    use_vllm: bool = field(default=False, init=False)
    vllm_mode: str = field(default="colocate", init=False)
    vllm_model_impl: str = field(default="vllm", init=False)
    vllm_enable_sleep_mode: bool = field(default=False, init=False)
    vllm_structured_outputs_regex: str | None = field(default=None, init=False)
    vllm_server_base_url: str | None = field(default=None, init=False)
    vllm_server_host: str = field(default="0.0.0.0", init=False)
    vllm_server_port: int = field(default=8000, init=False)
    vllm_server_timeout: float = field(default=240.0, init=False)
    vllm_group_port: int = field(default=51216, init=False)
    vllm_gpu_memory_utilization: float = field(default=0.3, init=False)
    vllm_max_model_length: int | None = field(default=None, init=False)
    vllm_tensor_parallel_size: int = field(default=1, init=False)
    vllm_importance_sampling_correction: bool = field(default=False, init=False)
    vllm_importance_sampling_mode: str = field(default="sequence_mask", init=False)
    vllm_importance_sampling_clip_max: float | None = field(default=3.0, init=False)
    vllm_importance_sampling_clip_min: float | None = field(default=None, init=False)
    vllm_importance_sampling_cap: float | None = field(default=None, init=False)
    use_transformers_continuous_batching: bool = field(default=False, init=False)
    transformers_continuous_batching_config: dict | str | None = field(default=None, init=False)
    use_transformers_paged: bool = field(default=False, init=False)
    cache_implementation: str | None = field(default=None, init=False)
    generation_kwargs: dict | str | None = field(default=None, init=False)
    chat_template_kwargs: dict | str | None = field(default=None, init=False)
    max_tool_calling_iterations: int | None = field(default=None, init=False)
    log_completions: bool = field(default=False, init=False)
    log_multimodal: bool = field(default=True, init=False)
    num_completions_to_print: int | None = field(default=None, init=False)
    log_unique_prompts: bool = field(default=False, init=False)
    log_completions_hub_repo: str | None = field(default=None, init=False)

    def __post_init__(self):
        super().__post_init__()
        self.include_num_input_tokens_seen = "no"  # TRL's trainer counts prompts and answers itself
