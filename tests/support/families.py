"""Tiny random models of many families, with weights so large that a lost state or a wrong position shows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qbench import demo

CONTEXT = 160
SHAPE: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}
WINDOW = {"sliding_window": 16}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64,
}  # fmt: skip
HYBRID = {
    "num_key_value_heads": 4, "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_token": 2, "num_expert_group": 1, "topk_group": 1,
    "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32, "linear_head_dim": 32,
    "linear_num_heads": 4,
}  # fmt: skip
MAMBA = {"mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_expand": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, tied": ("llama", {"tie_word_embeddings": True}),
    "Llama, with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mistral, sliding window": ("mistral", WINDOW),
    "Qwen2": ("qwen2", {}),
    "Qwen2, sliding window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}),
    "Qwen3": ("qwen3", {"head_dim": 32}),
    "Gemma": ("gemma", {"head_dim": 32}),
    "Gemma 2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, **WINDOW}),
    "Gemma 3": ("gemma3_text", {"head_dim": 32, "query_pre_attn_scalar": 32, **WINDOW}),
    "Phi": ("phi", {}),
    "Phi-3": ("phi3", {}),
    "Phi-3, LongRoPE": ("phi3", {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE}),
    "Falcon": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "Falcon, ALiBi": (
        "falcon",
        {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "GPT-2": ("gpt2", GPT2),
    "GPT-Neo": (
        "gpt_neo",
        {"num_hidden_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 16},
    ),
    "GPT-NeoX": ("gpt_neox", {"rotary_pct": 0.25}),
    "GPT-J": ("gptj", {**GPT2, "rotary_dim": 8}),
    "GPTBigCode": ("gpt_bigcode", {**GPT2, "multi_query": True}),
    "Bloom": ("bloom", {"n_layer": 3, "n_head": 4}),
    "MPT": ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": CONTEXT, "expansion_ratio": 2}),
    "OPT": ("opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "StableLM": ("stablelm", {"use_qkv_bias": True}),
    "Cohere": ("cohere", {}),
    "Cohere 2": ("cohere2", WINDOW),
    "StarCoder2": ("starcoder2", {"sliding_window": None}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "Granite": ("granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "SmolLM3": ("smollm3", {}),
    "EXAONE 4": ("exaone4", {"sliding_window_pattern": 2, **WINDOW}),
    "GLM": ("glm", {"head_dim": 16}),
    "GLM-4": ("glm4", {"head_dim": 16}),
    "Seed-OSS": ("seed_oss", {"head_dim": 16}),
    "Kimi Linear": ("kimi_linear", HYBRID),
    "Ling 2.5": ("bailing_hybrid", HYBRID),
    "MiniMax": (
        "minimax",
        {"head_dim": 16, "block_size": 16, "num_local_experts": 4,
         "layer_types": ["full_attention", "linear_attention", "full_attention"]},
    ),
    "Mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "Qwen3-MoE": (
        "qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16},
    ),
    "OLMoE": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "Granite-MoE": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Phi-MoE": ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, **WINDOW}),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 32,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4,
        },
    ),
    "Mamba": ("mamba", {"state_size": 8}),
    "Mamba-2": (
        "mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "expand": 2, "chunk_size": 32},
    ),
    "FalconMamba": ("falcon_mamba", {"state_size": 8}),
    "RWKV": ("rwkv", {"context_length": CONTEXT, "attention_hidden_size": 64}),
    "Jamba": (
        "jamba",
        {
            "num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False,
        },
    ),
    "Bamba": ("bamba", {"attn_layer_indices": [1], **MAMBA}),
    "Falcon-H1": (
        "falcon_h1",
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16},
    ),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8}),
}  # fmt: skip
"""Name, `model_type` and what differs from `SHAPE`."""


def save(name: str, folder: Path) -> Path:
    """Write a model in float32, with the demo model's tokenizer, into `folder`."""
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **settings})
    config.bos_token_id = config.eos_token_id = 0
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo.MODEL_DIR / file, folder / file)
    return folder
