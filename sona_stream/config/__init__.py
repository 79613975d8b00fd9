"""Settings: LiteLLM's `model_list` plus one `sona:` block; and the engine's own parameters."""
